"""Training rows in memory, of which a global batch consists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from qwen3emb.text.false_negatives import Answers, answers_of, true_negatives

__all__ = ["TrainingRow", "without_own_positives"]


@dataclass(frozen=True)
class TrainingRow:
    """One query, one positive document, its hard negatives (hardest first).

    Attributes:
        id: of the row in its source data.
        query, positive, negatives: texts.
        dataset: name of the dataset in the mixture (the pairs' `dataset`).
        grade: human score of the pair, for graded datasets.
        teacher: a teacher's logit of P(yes) for the positive and each negative, for distillation.
        teacher_rows: which of a teacher's vectors are those of the query, the positive and each negative.
    """

    id: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    dataset: str = ""
    grade: float = 0.0
    teacher: tuple[float, ...] = ()
    teacher_rows: tuple[int, ...] = ()


def without_own_positives(rows: Sequence[TrainingRow], graded: Collection[str] = ()) -> list[TrainingRow]:
    """The rows without false negatives: positives of the same query in any row, the query itself, and repeats.

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
