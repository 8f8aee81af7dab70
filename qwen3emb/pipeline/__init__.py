"""The graph of stages: what each one reads, what identifies its output, the report of a run."""
