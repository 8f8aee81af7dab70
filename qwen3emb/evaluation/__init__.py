"""The stage `evaluate` and the harness around mteb: what a model scores on held-out data."""
