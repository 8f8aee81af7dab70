"""The four tasks: each file holds the prompts, schemas, answers and pairs of one."""
