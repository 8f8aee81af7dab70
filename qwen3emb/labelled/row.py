"""Rows of labelled datasets, and the removal of their false negatives once the whole set is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwen3emb.text.false_negatives import Answers, answers_of, true_negatives

__all__ = ["STAGE", "LabelledRow", "answers_in", "settled"]

STAGE = "labelled"


@dataclass(frozen=True)
class LabelledRow:
    """One query, one positive, and the negatives that the dataset has for it.

    Attributes:
        id: `SET/record`, and `#n` for the n-th positive of a record that has several.
        query, positive, negatives: texts.
        grade: human score of the pair; None where the set has none.
        others: further positives of the record, which may have no row (`max_positives`).
        left_out: number of false negatives that were removed, by reason, see `false_negatives`.
    """

    id: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    grade: float | None = None
    others: tuple[str, ...] = field(default=(), compare=False)
    left_out: Mapping[str, int] = field(default_factory=Counter, compare=False)


def answers_in(rows: Sequence[LabelledRow]) -> Answers:
    """The positives of each query, from all rows of a set."""
    return answers_of((row.query, text) for row in rows for text in (row.positive, *row.others))


def settled(rows: Sequence[LabelledRow], most: int) -> Iterator[LabelledRow]:
    """The rows of a whole set with at most `most` negatives each, none of which is a positive of its query."""
    answers = answers_in(rows)
    for row in rows:
        kept, left_out = true_negatives(row.query, row.negatives, answers)
        negatives = tuple(row.negatives[place] for place in kept[:most])
        yield row if len(negatives) == len(row.negatives) else replace(row, negatives=negatives, left_out=left_out)
