"""Draws the validation queries of a reranker over all datasets; no row of such a query is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from qwen3emb.core.draws import hash_place
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.identity import content_hash

__all__ = ["held_out", "query_hashes"]

_ONE_IN = 10
"""At most one in so many rows is taken out of training for validation."""


def held_out(
    rows: Sequence[TrainingRow], queries: int, seed: int, trained: Collection[str] = frozenset()
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """(validation rows, training rows), disjoint by query.

    Up to `queries` queries are drawn, from each dataset in proportion to its queries, and one from every dataset before
    a second one from any. All rows of a drawn query are taken out of training, whatever their dataset, and those are at
    most a tenth of all rows: of fewer than ten rows none is drawn. At least one query of each dataset stays.
    Two queries are the same where their `content_hash` is. Documents may be in both parts: validation is about unseen
    queries, and the documents of an index may well have been seen in training.

    Args:
        rows: all rows that could be trained on.
        queries: number of validation queries, at most.
        seed: of the draw, which otherwise depends on the content of the rows only, not on their order or ids.
        trained: `content_hash` of queries that another stage has trained on; they are not drawn.

    Returns:
        One validation row for each drawn query, and the training rows in their order.
    """
    hashes = query_hashes(rows)
    places = [hash_place(f"{row.dataset}:{content_hash(row.positive)}", seed) for row in rows]
    of_query: dict[str, list[int]] = {}
    for number, name in enumerate(hashes):
        of_query.setdefault(name, []).append(number)
    sample = {name: min(numbers, key=lambda i: (places[i], rows[i].negatives)) for name, numbers in of_query.items()}
    waiting: dict[str, list[str]] = {}
    for name in sorted(sample, key=lambda name: hash_place(name, seed), reverse=True):
        waiting.setdefault(rows[sample[name]].dataset, []).append(name)
    sizes = {dataset: len(names) for dataset, names in waiting.items()}
    left = {dataset: [n for n in names[1:] if n not in trained] for dataset, names in waiting.items()}
    counts = {name: len(numbers) for name, numbers in of_query.items()}
    drawn = _drawn(left, sizes, counts, queries, len(rows) // _ONE_IN)
    kept = set(drawn)
    train = [row for row, name in zip(rows, hashes, strict=True) if name not in kept]
    return [rows[sample[name]] for name in drawn], train


def _drawn(
    left: dict[str, list[str]], sizes: dict[str, int], counts: dict[str, int], queries: int, room: int
) -> list[str]:
    """Draw queries from the ends of `left`, always from the dataset with the smallest drawn share of its queries.

    Args:
        left: dataset -> its queries that may be drawn; drawn and refused ones are removed.
        sizes: dataset -> number of its queries.
        counts: query -> number of its rows.
        queries: number of queries to draw, at most.
        room: rows that all drawn queries may have together.
    """
    taken: Counter[str] = Counter()
    drawn: list[str] = []
    while len(drawn) < queries:
        sets = [dataset for dataset, names in left.items() if names]
        if not sets:
            break
        dataset = min(sets, key=lambda d: (taken[d] / sizes[d], -sizes[d], d))
        name = left[dataset].pop()
        if counts[name] <= room:
            room -= counts[name]
            taken[dataset] += 1
            drawn.append(name)
    return drawn


def query_hashes(rows: Sequence[TrainingRow]) -> list[str]:
    """`content_hash` of each row's query."""
    return [content_hash(row.query) for row in rows]
