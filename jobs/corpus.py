"""Read files into passages, docstring pairs and held-out sets: `python -m jobs.corpus --config FILE`."""

from __future__ import annotations

import sys

from jobs.entry import command_line, run_stage, say
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.encoding.dispatch import paced


def run(ctx: StageContext[RunConfig]) -> StageResult:
    """The stage."""
    from qwen3emb.corpus.stage import build_corpus

    return build_corpus(ctx, paced(say, "corpus: files read"))


if __name__ == "__main__":
    sys.exit(run_stage("corpus", run, command_line(__doc__ or "").parse_args()))
