"""Who computes what of a global batch: distinct texts, spread over the ranks by length.

A pure function of the rows and the world size, so that no rank has to ask another. The batch may be split in any way,
since vectors are gathered before the loss: each text is computed once, however often it stands in the batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3emb.objective.rows import TrainingRow

__all__ = ["TextAssignment", "assign_texts", "balance"]


@dataclass(frozen=True)
class TextAssignment:
    """The distinct texts of a global batch. Queries count first: text t is a query where t < len(queries).

    Attributes:
        queries, documents: distinct texts.
        query_of, positive_of: (rows,) text numbers.
        owner, negative_of: (hard negatives,) row and text numbers.
    """

    queries: list[str]
    documents: list[str]
    query_of: list[int]
    positive_of: list[int]
    owner: list[int]
    negative_of: list[int]

    def shares(self, world: int) -> list[list[int]]:
        """For each rank the texts it computes, ascending."""
        return balance([len(text) for text in (*self.queries, *self.documents)], world)


def assign_texts(rows: Sequence[TrainingRow], hard_negatives: int, symmetric: bool = False) -> TextAssignment:
    """List the texts of `rows` once each.

    Args:
        rows: the global batch.
        hard_negatives: take at most so many of each row, the hardest.
        symmetric: both sides of a pair are encoded alike, as queries (STS).
    """
    queries: dict[str, int] = {}
    documents: dict[str, int] = {}
    second = queries if symmetric else documents
    for row in rows:
        queries.setdefault(row.query, len(queries))
        for text in (row.positive, *row.negatives[:hard_negatives]):
            second.setdefault(text, len(second))
    # Documents are numbered behind the queries; where both sides are queries there is one numbering.
    shift = 0 if symmetric else len(queries)
    pairs = [(i, text) for i, row in enumerate(rows) for text in row.negatives[:hard_negatives]]
    return TextAssignment(
        list(queries),
        list(documents),
        [queries[row.query] for row in rows],
        [shift + second[row.positive] for row in rows],
        [i for i, _ in pairs],
        [shift + second[text] for _, text in pairs],
    )


def balance(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Numbers of the items for each rank, ascending, the sums of lengths nearly equal (longest item first)."""
    ranks: list[list[int]] = [[] for _ in range(world)]
    # Longest item to the rank with the least so far (greedy scheduling, at most 4/3 of the best). Ties go by rank
    # number, so every rank computes the same shares. The + 1 spreads empty texts too.
    loads = [(0, rank) for rank in range(world)]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, rank = heapq.heappop(loads)
        ranks[rank].append(item)
        heapq.heappush(loads, (load + lengths[item] + 1, rank))
    return [sorted(items) for items in ranks]
