"""Scores of rankings: nDCG, MRR, recall, and whether two models differ."""
