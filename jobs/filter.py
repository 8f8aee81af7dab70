"""Keep synthetic pairs with a high query-document cosine: `python -m jobs.filter --config FILE`."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage, say
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext


def run(ctx: StageContext[RunConfig]) -> StageResult:
    """The stage."""
    from qwen3emb.filtering.stage import filter_pairs

    return filter_pairs(ctx, say)


if __name__ == "__main__":
    sys.exit(run_stage("filter", run, command_line(__doc__ or "").parse_args()))
