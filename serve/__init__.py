"""Ray Serve deployments: embeddings, rerank, search."""
