"""Work on many Ray workers: its dispatch, pools that embed and rerank, vectors on storage, nearest neighbours."""
