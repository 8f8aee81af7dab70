"""Train the embedding model: `--stage weak` on all synthetic pairs, `--stage supervised` with hard negatives."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage
from qwen3emb.training.stage import train_supervised, train_weak

__all__ = ["main"]


def main() -> int:
    """Run the stage named on the command line; the exit code."""
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.train_embedding --config examples/demo.yaml --stage supervised"
    parser.add_argument("--stage", choices=["weak", "supervised"], default="weak", help="default: weak")
    arguments = parser.parse_args()
    run = train_weak if arguments.stage == "weak" else train_supervised
    return run_stage(arguments.stage, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
