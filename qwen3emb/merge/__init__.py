"""Checkpoint merging: SLERP and its N-way form."""
