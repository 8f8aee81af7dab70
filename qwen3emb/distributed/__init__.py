"""Everything that imports Ray: data sets, vLLM workers, encoding workers, the trainer."""
