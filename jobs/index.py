"""Embed a corpus into a searchable index: `python -m jobs.index --config FILE`."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage, say
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.encoding.dispatch import paced


def run(ctx: StageContext[RunConfig]) -> StageResult:
    """The stage."""
    from qwen3emb.search.stage import build_index

    return build_index(ctx, paced(say, "index: documents"))


if __name__ == "__main__":
    sys.exit(run_stage("index", run, command_line(__doc__ or "").parse_args()))
