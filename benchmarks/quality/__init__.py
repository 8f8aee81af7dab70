"""What each part of the recipe buys, by seeds that add up over runs: `make bench-quality` (docs/benchmarks.md)."""
