"""Merge the last checkpoints of each supervised training into one model: `python -m jobs.merge --config FILE`."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage, say
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext


def run(ctx: StageContext[RunConfig]) -> StageResult:
    """The stage."""
    from qwen3emb.merging.stage import merge_models

    return merge_models(ctx, say)


if __name__ == "__main__":
    sys.exit(run_stage("merge", run, command_line(__doc__ or "").parse_args()))
