"""Embedding on many Ray workers: the pool, vectors on storage, nearest neighbours."""
