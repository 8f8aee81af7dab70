"""The stage `labelled`: data sets with human labels, in whatever format, into training rows."""
