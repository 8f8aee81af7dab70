"""Which model is the current one, and when a new one takes its place."""
