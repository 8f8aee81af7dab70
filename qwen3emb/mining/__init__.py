"""The stage `mine`: hard negatives under positive-aware rules."""
