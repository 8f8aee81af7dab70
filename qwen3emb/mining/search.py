"""The search of the stage `mine`: one Ray task for a block of queries and a shard of the documents.

A task holds one shard's vectors, `mine.shard_rows` of them; what it returns is a few numbers for each query. The
driver joins what the shards of one block have, and holds no vectors of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import ray

from qwen3emb.config.data import MineConfig
from qwen3emb.encoding.vectors import Vectors
from qwen3emb.mining.rules import Asked, Found, Negatives, Search, blocks, choose, look, merged

__all__ = ["QUERIES_AT_ONCE", "Mined", "mined_blocks", "search_shard"]

QUERIES_AT_ONCE = 4096
_LEAST = 256
_AHEAD = 2

Mined = tuple[Asked, Found, list[Negatives | None]]
"""A block of queries, the cosines of their positives, and their negatives."""


def search_shard(queries: Vectors, documents: Vectors, asked: Asked, shard: tuple[int, int], k: int) -> Found:
    """What the documents from `shard[0]` on, before `shard[1]`, have for a block of queries; see `mining.look`."""
    vectors = documents.read(np.arange(*shard))
    return look(queries.read(np.asarray(asked.rows)), shard[0], vectors, asked, k)


def shards(asked: Asked, documents: Vectors, rows: int) -> list[tuple[int, int]]:
    """The parts of the documents, of at most `rows` each, that hold what is to be searched or an answer."""
    touched = sorted({*(asked.corpus // rows).tolist(), *(asked.positives // rows).tolist()})
    return [(number * rows, min((number + 1) * rows, documents.count)) for number in touched]


def mined_blocks(
    search: Search, queries: Vectors, documents: Vectors, rules: MineConfig, progress: Callable[[int, int], None]
) -> Iterator[Mined]:
    """The negatives of a search, block by block in the order of the queries, from Ray tasks.

    Args:
        search: what is asked.
        queries: vectors of `MinePlan.queries`.
        documents: vectors of `MinePlan.documents`.
        rules: the rules; `rules.shard_rows` documents are held by one task.
        progress: called with (queries done, queries in all).
    """
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    size = min(QUERIES_AT_ONCE, max(_LEAST, -(-len(search.queries) // cores)))
    task: Any = ray.remote(search_shard)
    done = 0
    pending: list[tuple[Asked, list[Any]]] = []
    waiting = blocks(search, size)
    while True:
        while len(pending) < max(_AHEAD, cores) and (asked := next(waiting, None)) is not None:
            where = ray.put(asked)
            parts = shards(asked, documents, rules.shard_rows)
            pending.append((asked, [task.remote(queries, documents, where, part, rules.top_k) for part in parts]))
        if not pending:
            return
        asked, results = pending.pop(0)
        found = _joined(results)
        done += len(asked.rows)
        progress(done, len(search.queries))
        yield asked, found, choose(asked, found, rules)


def _joined(results: Sequence[Any]) -> Found:
    """What all shards have together; of each no more than one at a time is in this process."""
    parts: Iterator[Found] = (ray.get(result) for result in results)
    return reduce(merged, parts)
