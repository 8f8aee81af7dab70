"""The stage `labelled`: datasets with human labels, in whatever format, into training rows."""
