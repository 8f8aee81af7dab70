"""Which checkpoints `merge` takes and `evaluate` shows, of a run with and without the stage `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.context import StageContext
from qwen3emb.evaluation.model_rankings import EvaluatedSet, Evaluation, Pools, model_rankings
from qwen3emb.merging.stage import EMBEDDING, RERANKER, _further, _last, _work
from qwen3emb.pipeline.stages import identity, stage_folder, stage_inputs
from qwen3emb.text.retrieval_set import RetrievalSet

DISTILL = "distill={steps: 1, teacher: {candidates: 2}}"


def trained(file: Path, *overrides: str) -> RunConfig:
    """A run whose trainings are recorded as done, with three checkpoints each."""
    cfg = load_config(file, list(overrides))
    names = [f"checkpoints/step_00000{n}" for n in (1, 2, 3)]
    for stage in ("weak", "supervised", "reranker", "distill"):
        start(stage_folder(cfg, stage), identity(cfg, stage))
        metrics: dict[str, Any] = {"model": names[1], "checkpoints": names}  # the best one, not the last
        complete(stage_folder(cfg, stage), identity(cfg, stage), StageResult(1, 1, {}, metrics), 1.0)
    return cfg


def context(cfg: RunConfig, stage: str) -> StageContext[RunConfig]:
    return StageContext(cfg, stage, stage_folder(cfg, stage), stage_inputs(cfg, stage))


def merged(ctx: StageContext[RunConfig], stage: str = "supervised") -> tuple[dict[str, str], list[float] | None]:
    """(name -> place of the models that are merged by default, their weights)."""
    further, output = (_further(ctx), EMBEDDING) if stage == "supervised" else ({}, RERANKER)
    work = _work(ctx, _last(ctx, stage, print), further, ctx.cfg.models.base, output)
    weights = None if work.weights is None else list(work.weights)
    return {name: uri.split("/run/")[1] for name, uri in work.checkpoints.items()}, weights


def test_the_distilled_model_is_one_more_checkpoint_of_the_embedding_model(run_file: Path) -> None:
    merge = context(trained(run_file, DISTILL, "merge.weights=[1.0, 3.0]"), "merge")
    models, weights = merged(merge)
    assert models == {
        "step_000002": "supervised/checkpoints/step_000002",
        "step_000003": "supervised/checkpoints/step_000003",
        "distill": "distill/checkpoints/step_000002",
    }
    assert weights == [1.0, 3.0, 2.0]
    assert merged(merge, "reranker")[1] == [1.0, 3.0]


def test_without_that_stage_the_last_supervised_checkpoints_are_merged(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, weights = merged(context(trained(run_file, "merge.last=4"), "merge"))
    assert list(models) == [f"step_00000{n}" for n in (1, 2, 3)] and weights is None
    assert capsys.readouterr().out == "merge: supervised kept 3 checkpoints, merge.last is 4; merging what there is\n"


def test_evaluate_shows_the_distilled_model_between_supervised_and_merged(run_file: Path) -> None:
    def shown(*overrides: str) -> list[str]:
        evaluate = context(trained(run_file, *overrides), "evaluate")
        nothing = EvaluatedSet("", RetrievalSet({}, {}, {}), "")
        return list(model_rankings(Evaluation(evaluate, nothing, evaluate.out, Pools(1, 0), print)))

    names = ["base", "weak", "supervised", "merged", "merged+reranker"]
    assert shown() == names
    assert shown("storage=" + str(run_file.parent / "second"), DISTILL) == [*names[:3], "distilled", *names[3:]]
