"""Models: loading, padding-free packing, pooling, encoding, scoring, export."""
