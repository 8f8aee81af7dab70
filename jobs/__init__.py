"""One thin entry point per stage: `python -m jobs.NAME --config FILE`."""
