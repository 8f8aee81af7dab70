"""The stage `evaluate` on the run's own held-out data, and the evaluation of any model on tasks of mteb."""
