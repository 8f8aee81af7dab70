"""Retrieval metrics and the table of what each stage bought."""
