"""Training rows in memory: what one optimizer step consumes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from qwen3emb.config.datasets import is_synthetic
from qwen3emb.core.errors import UserError
from qwen3emb.text.false_negatives import Answers, answers_of, true_negatives

__all__ = [
    "TrainingRow",
    "by_dataset",
    "check_datasets",
    "checked",
    "rows_from_pairs",
    "rows_from_training",
    "without_own_positives",
]


@dataclass(frozen=True)
class TrainingRow:
    """One query, one positive document, its hard negatives (hardest first).

    Attributes:
        id: of the row, in the data it came from.
        query, positive, negatives: texts.
        dataset: which set of a mixture it belongs to (the pairs' `dataset`).
        grade: human score of the pair, for graded datasets.
        teacher: a teacher's P(yes) of the positive and of each negative, for distillation.
    """

    id: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    dataset: str = ""
    grade: float = 0.0
    teacher: tuple[float, ...] = ()


def rows_from_pairs(table: pa.Table, graded: Collection[str] = ()) -> list[TrainingRow]:
    """Rows from a table of `records.PAIR`, with the negatives that classification rows have.

    `graded` as of `without_own_positives`, which they went through.

    Raises:
        UserError: a row of a graded set has no grade.
    """
    columns = (table[c].to_pylist() for c in ("id", "query", "document", "dataset", "negatives", "grade"))
    rows = [
        TrainingRow(i, q, d, tuple(n or ()), dataset, _grade(i, dataset, grade, graded))
        for i, q, d, dataset, n, grade in zip(*columns, strict=True)
    ]
    return without_own_positives(rows, graded)


def rows_from_training(
    table: pa.Table, negatives: int, synthetic: bool = True, graded: Collection[str] = ()
) -> list[TrainingRow]:
    """Rows with up to `negatives` hard negatives from a table of `records.TRAINING_ROW`.

    Args:
        table: the rows.
        negatives: at most so many of each row, the first ones that are no positive of its query.
        synthetic: take the synthetic rows as well.
        graded: as of `without_own_positives`, which all rows of the table went through.

    Raises:
        UserError: a row of a graded set has no grade.
    """
    columns = (table[c].to_pylist() for c in ("id", "query", "positive", "negatives", "dataset", "grade"))
    rows = [
        TrainingRow(i, q, p, tuple(n or ()), dataset, _grade(i, dataset, grade, graded))
        for i, q, p, n, dataset, grade in zip(*columns, strict=True)
    ]
    return [
        replace(row, negatives=row.negatives[:negatives])
        for row in without_own_positives(rows, graded)
        if synthetic or not is_synthetic(row.dataset)
    ]


def _grade(row: str, dataset: str, grade: float | None, graded: Collection[str]) -> float:
    if grade is None and dataset in graded:
        raise UserError(f"row {row}: the dataset {dataset!r} has the task sts, but this row has no grade; give it one")
    return 0.0 if grade is None else grade


def without_own_positives(rows: Sequence[TrainingRow], graded: Collection[str] = ()) -> list[TrainingRow]:
    """The rows without negatives that are none: a positive of the same query in any of them, the query itself, repeats.

    The rule is that of the data stages (`text.false_negatives`). A teacher's scores go with their documents.

    Args:
        rows: all rows that are trained on together.
        graded: datasets whose pairs have a grade (STS), which may be low: those are no positives.
    """
    answers = answers_of((row.query, row.positive) for row in rows if row.dataset not in graded)
    return [_without(row, answers) for row in rows]


def _without(row: TrainingRow, answers: Answers) -> TrainingRow:
    kept, _ = true_negatives(row.query, row.negatives, answers)
    if len(kept) == len(row.negatives):
        return row
    teacher = [*row.teacher[:1], *(row.teacher[1 + n] for n in kept if 1 + n < len(row.teacher))]
    return replace(row, negatives=tuple(row.negatives[n] for n in kept), teacher=tuple(teacher))


def by_dataset(rows: Sequence[TrainingRow]) -> dict[str, list[TrainingRow]]:
    """The rows of each dataset, in their order."""
    found: dict[str, list[TrainingRow]] = {}
    for row in rows:
        found.setdefault(row.dataset, []).append(row)
    return found


def check_datasets(rows: Sequence[TrainingRow], weights: Mapping[str, float], what: str) -> None:
    """Refuse a mixture that names what is not there, or leaves nothing.

    Args:
        rows: all training rows.
        weights: of the datasets that the configuration names.
        what: where the names stand, for the message.

    Raises:
        UserError: a name that no row has, or no dataset with a weight above 0.
    """
    there = sorted({row.dataset for row in rows})
    unknown = sorted(set(weights) - set(there))
    if unknown:
        raise UserError(f"{what}: no row is of the dataset {unknown[0]!r}; there are: {', '.join(there)}")
    if not any(weights.get(name, 1.0) > 0 for name in there):
        raise UserError(f"{what}: every dataset has weight 0, so there is nothing to train on; raise one of them")


def checked(rows: Sequence[TrainingRow], batch: int, what: str) -> None:
    """Refuse to train on less than one batch.

    Raises:
        UserError: fewer rows than a global batch.
    """
    if len(rows) < batch:
        raise UserError(f"{what}: {len(rows)} training rows, but a global batch takes {batch}; add data or lower it")
