"""Which rows a reranker is validated on: a sample by query, over all datasets, of which nothing is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from qwen3emb.core.draws import hash_place
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.identity import content_hash

__all__ = ["held_out", "query_hashes"]

_ONE_IN = 10
"""At most one in so many rows leaves training for validation."""


def held_out(
    rows: Sequence[TrainingRow], queries: int, seed: int, trained: Collection[str] = frozenset()
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """(validation rows, training rows), disjoint by query.

    Up to `queries` queries are drawn, each dataset's share in proportion to its queries and the first one of each
    before the second one of any. All rows of a drawn query leave training, whatever dataset they are of, and those
    are at most a tenth of the rows: of fewer than ten rows none is drawn. The last query of a dataset stays.
    Queries are the same where `content_hash` says so. Documents may be in both parts: what is validated is an unseen
    query, and a document that is read in training is what every index holds.

    Args:
        rows: all rows that could be trained on.
        queries: wanted validation queries.
        seed: of the draw, which depends on nothing else but the rows' content: not on their order or ids.
        trained: `content_hash` of queries that another stage has trained on, which are not drawn.

    Returns:
        One validation row for each drawn query, and the training rows in their order.
    """
    hashes = query_hashes(rows)
    places = [hash_place(f"{row.dataset}:{content_hash(row.positive)}", seed) for row in rows]
    of_query: dict[str, list[int]] = {}
    for number, name in enumerate(hashes):
        of_query.setdefault(name, []).append(number)
    one = {name: min(found, key=lambda i: (places[i], rows[i].negatives)) for name, found in of_query.items()}
    waiting: dict[str, list[str]] = {}
    for name in sorted(one, key=lambda name: hash_place(name, seed), reverse=True):
        waiting.setdefault(rows[one[name]].dataset, []).append(name)
    sizes = {dataset: len(names) for dataset, names in waiting.items()}
    left = {dataset: [n for n in names[1:] if n not in trained] for dataset, names in waiting.items()}
    counts = {name: len(found) for name, found in of_query.items()}
    drawn = _drawn(left, sizes, counts, queries, len(rows) // _ONE_IN)
    kept = set(drawn)
    train = [row for row, name in zip(rows, hashes, strict=True) if name not in kept]
    return [rows[one[name]] for name in drawn], train


def _drawn(
    left: dict[str, list[str]], sizes: dict[str, int], counts: dict[str, int], queries: int, room: int
) -> list[str]:
    """Queries from the ends of `left`, the next one always of the dataset that has least for its size.

    Args:
        left: dataset -> its queries that may be drawn; emptied.
        sizes: dataset -> its queries in all.
        counts: query -> rows.
        queries: at most so many.
        room: rows of all drawn queries together.
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
    """The identity of each row's query."""
    return [content_hash(row.query) for row in rows]
