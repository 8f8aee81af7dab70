"""Train the yes / no reranker on the mined rows (paper section 2); `--stage weak` on the synthetic ones alone."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage, say
from qwen3emb.training.stage import train_reranker

__all__ = ["main"]


def main() -> int:
    """Run the stage; the exit code."""
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.train_reranker --config examples/demo.yaml --set reranker.steps=20"
    parser.add_argument("--stage", choices=["weak", "supervised"], default="supervised", help="default: supervised")
    arguments = parser.parse_args()
    stage = "reranker_weak" if arguments.stage == "weak" else "reranker"
    return run_stage(stage, lambda ctx: train_reranker(ctx, say), arguments)


if __name__ == "__main__":
    sys.exit(main())
