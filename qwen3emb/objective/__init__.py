"""The training objective: losses, the gradient cache, a step of the embedding model and of the reranker. No Ray."""
