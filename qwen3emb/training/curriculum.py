"""From weak to hard: which of its hard negatives a row trains with at each step, a pure function of the step number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwen3emb.objective.rows import TrainingRow

__all__ = ["rows_at"]

_RISE = 2  # hardness rises over the first 1 / _RISE of the steps


def rows_at(step: int, steps: int, rows: Sequence[TrainingRow], wanted: int) -> list[TrainingRow]:
    """The rows with the negatives of a step: none at first, then the easiest ones, from half of the steps the hardest.

    Of m negatives, hardest first, a row has `wanted` ones from the place o on, and o falls from m to 0 in equal parts
    of the first half: more and more of the easiest, then harder ones in their place. A teacher's scores go with their
    documents.

    Args:
        step: number of the step, from 0.
        steps: of the whole training.
        rows: with all their negatives.
        wanted: hard negatives of a row in the end.
    """
    return [_window(row, step, steps, wanted) for row in rows]


def _window(row: TrainingRow, step: int, steps: int, wanted: int) -> TrainingRow:
    count = len(row.negatives)
    first = count - min(count, _RISE * step * count // steps)
    chosen = slice(first, first + wanted)
    return replace(row, negatives=row.negatives[chosen], teacher=(*row.teacher[:1], *row.teacher[1:][chosen]))
