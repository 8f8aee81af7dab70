"""qwen3emb: train, merge and serve your own embedding and reranking models with the Qwen3 Embedding recipe."""

__version__ = "0.2.0"
__all__ = ["__version__"]
