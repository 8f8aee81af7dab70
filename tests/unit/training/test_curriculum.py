"""The curriculum from weak to hard against its description step by step; a resumed run sees the same rows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.config.training import DatasetConfig, TrainEmbeddingConfig, TrainSupervisedConfig
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.training.curriculum import rows_at
from qwen3emb.training.mixture import Mixture
from qwen3emb.training.tasks import EmbeddingTask

STEPS = 20
ROWS = {
    name: [TrainingRow(f"{name}{i}", f"{name} {i}?", name, tuple("abcd"[: 4 - i % 3]), name) for i in range(30)]
    for name in ("docstrings", "bitext", "classes", "graded")
}
SETS = {
    "bitext": DatasetConfig(task="bitext", hard_negatives=1),
    "classes": DatasetConfig(task="classification"),
    "graded": DatasetConfig(task="sts"),
}


def task(curriculum: str | None) -> EmbeddingTask:
    """Of the supervised stage; None: of the weak one, which has no such key."""
    keys = {"steps": STEPS, "batch_size": 4, "hard_negatives": 2}
    cfg = (
        TrainEmbeddingConfig.model_validate(keys)
        if curriculum is None
        else TrainSupervisedConfig.model_validate(keys | {"curriculum": curriculum})
    )
    return EmbeddingTask(cfg.model_copy(update={"datasets": SETS}), Path(), "", "find it", None)


def seen(of: EmbeddingTask, first: int = 0) -> list[list[TrainingRow]]:
    """What a training that goes on at step `first` trains on, step by step."""
    mixture = Mixture({name: len(rows) for name, rows in ROWS.items()}, {}, 1.0, of.batch_size, seed=3)
    batches = ((step, *mixture.batch(step)) for step in range(first, STEPS))
    return [list(of.rows_at(step, [ROWS[name][i] for i in numbers])) for step, name, numbers in batches]


@given(st.integers(0, 9), st.integers(0, 5), st.integers(1, 40), st.data())
def test_a_row_has_the_hardest_of_the_negatives_that_its_step_has_reached(
    count: int, wanted: int, steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    negatives = tuple(f"negative {rank}" for rank in range(count))  # the hardest first
    scores = tuple(1 / (1 + rank) for rank in range(count))
    row = TrainingRow("r", "q", "p", negatives, teacher=(0.9, *scores))
    reached = [rank for rank in range(count) if Fraction(count - rank, count) <= Fraction(2 * step, steps)]
    (found,) = rows_at(step, steps, [row], wanted)
    assert found.negatives == tuple(negatives[rank] for rank in reached[:wanted])
    assert found.teacher == (0.9, *(scores[rank] for rank in reached[:wanted]))
    assert (found.id, found.query, found.positive) == ("r", "q", "p")


def test_it_begins_without_negatives_and_ends_with_the_hardest() -> None:
    rows = [TrainingRow("r", "q", "p", ("a", "b", "c", "d"))]
    found = ["".join(rows_at(step, 16, rows, 2)[0].negatives) for step in range(16)]
    assert found == ["", "", "d", "d", "cd", "cd", "bc", "bc", *["ab"] * 8]
    assert rows_at(3, 16, rows, 2)[0].teacher == ()


def test_a_resumed_run_sees_the_same_rows() -> None:
    whole = seen(task("hardness"))
    assert len({row.negatives for batch in whole for row in batch if row.dataset == "docstrings"}) > 3
    for first in (1, 7, 13):
        assert seen(task("hardness"), first) == whole[first:]


@pytest.mark.parametrize("curriculum", ["none", "hardness", None])
def test_only_hard_negatives_of_the_supervised_stage_change(curriculum: str | None) -> None:
    for step, (found, plain) in enumerate(zip(seen(task(curriculum)), seen(task("none")), strict=True)):
        name = found[0].dataset
        wanted = {"docstrings": 2, "bitext": 1}.get(name)
        if curriculum != "hardness" or wanted is None:
            assert found == plain
        elif step == 0:
            assert not any(row.negatives for row in found)
        elif step >= STEPS // 2:
            assert [row.negatives for row in found] == [row.negatives[:wanted] for row in plain]
        else:
            assert all(len(row.negatives) <= wanted for row in found)
