"""Train the yes / no reranker on the mined rows (paper section 2)."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage
from qwen3emb.distributed.training import train_reranker

__all__ = ["main"]


def main() -> int:
    """Run the stage; the exit code."""
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.train_reranker --config examples/demo.yaml --set reranker.steps=20"
    return run_stage("reranker", train_reranker, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
