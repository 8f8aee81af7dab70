"""Training maths: losses, sampling, schedules, one embedding step and one reranker step."""
