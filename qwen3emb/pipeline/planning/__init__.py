"""What a run will take, before anything starts: rows, tokens, FLOPs, memory, hours, price (docs/plan.md)."""
