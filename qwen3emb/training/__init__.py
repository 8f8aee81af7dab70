"""The stages `weak`, `supervised` and `reranker`: Ray Train around DeepSpeed ZeRO."""
