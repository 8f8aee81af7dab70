"""Train the embedding model: `--stage weak` on all synthetic pairs, `--stage supervised` with hard negatives,
`--stage distill` with the reranker as its teacher."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage, say
from qwen3emb.training.stage import train_distilled, train_supervised, train_weak

__all__ = ["main"]

_STAGES = {"weak": train_weak, "supervised": train_supervised, "distill": train_distilled}


def main() -> int:
    """Run the stage named on the command line; the exit code."""
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.train_embedding --config examples/demo.yaml --stage supervised"
    parser.add_argument("--stage", choices=list(_STAGES), default="weak", help="default: weak")
    arguments = parser.parse_args()
    return run_stage(arguments.stage, lambda ctx: _STAGES[arguments.stage](ctx, say), arguments)


if __name__ == "__main__":
    sys.exit(main())
