"""Candidates are merged, scored once and deleted, also over a kill; the score is a function of the weights here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3emb.config.run import load_config
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.merging.candidates import Candidate
from qwen3emb.merging.search import SCRATCH, Comparison, pick

POINTS = {"step_1": [1.0, 0.0], "step_2": [0.0, 1.0], "distill": [0.6, 0.6]}


class Scores:
    """nDCG@10 that falls with the distance of a model's only tensor to a goal, a little differently for each query."""

    def __init__(self, goal: Sequence[float]) -> None:
        self.goal = torch.tensor(goal)
        self.models: list[str] = []

    def __call__(self, uri: str) -> dict[str, float]:
        self.models.append(uri)
        found = load_file(Path(uri) / "model.safetensors")["w"]
        return {f"q{i}": 1 - float((found - self.goal).norm()) * (1 + i / 10) / 4 for i in range(6)}


class Found:
    """Weights that a method finds, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def __call__(self, method: str, checkpoints: Sequence[str]) -> list[float]:
        self.asked.append((method, [Path(uri).name for uri in checkpoints]))
        return [0.5, 0.3, 0.2][: len(checkpoints)] if method == "cocktail" else [0.9, *[0.1] * (len(checkpoints) - 1)]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    for name, point in POINTS.items():
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor(point)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    return {name: str(tmp_path / name) for name in POINTS}


@pytest.fixture
def context(run_file: Path, tmp_path: Path) -> Any:
    def made(*settings: str) -> StageContext:
        cfg = load_config(run_file, ["merge.on=weights", *settings])
        return StageContext(cfg, "merge", Storage(str(tmp_path / "merge")), {})

    return made


def compared(ctx: StageContext, models: dict[str, str], score: Any, said: list[str]) -> Comparison:
    return Comparison(ctx, "embedding", models, None, score, said.append)


def test_each_candidate_is_scored_once_under_a_name_of_its_own_and_deleted(context: Any, models: Any) -> None:
    ctx, score, find, said = context("merge.keep=best"), Scores([0.5, 0.5]), Found(), []
    picked = pick(ctx.cfg.merge, compared(ctx, models, score, said), ["distill"], find)
    assert list(picked.means) == [
        *POINTS,
        *(f"{method} + distill" for method in ("karcher last 2", "slerp last 1", "cocktail last 2")),
        *("self_position last 2 + distill", "slerp last 2", "cocktail last 2", "self_position last 2"),
    ]
    assert len(set(score.models)) == len(score.models) == len(picked.means) == len(said)
    assert not ctx.out.names(SCRATCH)
    # LM-Cocktail's losses are those of the checkpoints, whatever they are merged with: asked for once.
    assert find.asked == [
        ("cocktail", ["step_1", "step_2", "distill"]),
        ("self_position", ["step_1", "step_2", "distill"]),
        ("self_position", ["step_1", "step_2"]),
    ]
    kept = ctx.out.read_json("candidates/embedding.json")
    assert kept["cocktail last 2 + distill"]["weights"] == pytest.approx([0.5, 0.3, 0.2])
    assert kept["cocktail last 2"]["weights"] == pytest.approx([0.625, 0.375])
    # The linear merge is the weighted sum, and its score that of the sum.
    wanted = 1 - (torch.tensor([0.625, 0.375]) - 0.5).norm() * 1.25 / 4
    assert picked.means["cocktail last 2"] == pytest.approx(float(wanted), abs=1e-5)
    assert picked.choice is not None and picked.candidate.name == picked.choice.kept
    assert picked.means[picked.candidate.name] == max(picked.means.values())


def test_what_a_killed_stage_has_scored_is_not_scored_again(context: Any, models: Any) -> None:
    ctx, find = context("merge.keep=best"), Found()
    whole = pick(ctx.cfg.merge, compared(ctx, models, Scores([0.5, 0.5]), []), ["distill"], find)

    class Killed(Scores):
        def __call__(self, uri: str) -> dict[str, float]:
            if len(self.models) == 5:
                raise KeyboardInterrupt
            return super().__call__(uri)

    ctx.out.delete()
    with pytest.raises(KeyboardInterrupt):
        pick(ctx.cfg.merge, compared(ctx, models, Killed([0.5, 0.5]), []), ["distill"], find)
    before, score, said = len(find.asked), Scores([0.5, 0.5]), []
    again = pick(ctx.cfg.merge, compared(ctx, models, score, said), ["distill"], find)
    assert again == whole
    assert len(score.models) == len(said) == len(whole.means) - 5
    assert len(find.asked) == before, "weights that were found are not looked for again"
    assert not ctx.out.names(SCRATCH)


def test_a_single_checkpoint_is_kept_where_no_merge_is_as_good(context: Any, models: Any) -> None:
    ctx = context("merge.keep=best", "merge.candidates=[]")
    picked = pick(ctx.cfg.merge, compared(ctx, models, Scores([0.0, 1.0]), []), ["distill"], Found())
    assert picked.candidate == Candidate("step_2", ("step_2",))
    assert picked.models["step_2"] == models["step_2"]


@pytest.mark.parametrize(("goal", "kept"), [([0.9, 0.45], "slerp last 2, 2 x step_1"), ([0.0, 1.0], "step_2")])
def test_the_search_takes_the_highest_mean(context: Any, models: Any, goal: list[float], kept: str) -> None:
    ctx = context("merge.search=true")
    run = {name: models[name] for name in ("step_1", "step_2")}
    picked = pick(ctx.cfg.merge, compared(ctx, run, Scores(goal), []), [], Found())
    parts = [f"slerp last 2, {word} step_{n}" for n in (1, 2) for word in ("2 x", "half")]
    assert list(picked.means) == ["step_1", "step_2", "slerp last 2", *parts]
    assert picked.choice is None and picked.candidate.name == kept
    assert picked.means[kept] == max(picked.means.values())


def test_with_keep_best_the_search_adds_candidates(context: Any, models: Any) -> None:
    ctx = context("merge.search=true", "merge.keep=best", "merge.candidates=[]")
    picked = pick(ctx.cfg.merge, compared(ctx, models, Scores([0.9, 0.45]), []), ["distill"], Found())
    assert picked.candidate.name == "slerp last 2, 2 x step_1" and picked.candidate.weights == (2.0, 1.0)
    assert picked.choice is not None and picked.choice.single == "distill"
