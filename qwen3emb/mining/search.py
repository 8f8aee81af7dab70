"""The search of the stage `mine`: one Ray task for a block of queries and a shard of the documents.

A task holds one shard's vectors, `mine.shard_rows` of them; what it returns is a few numbers for each query. The
driver joins what the shards of one block have, and holds no vectors of documents.
"""

from __future__ import annotations

import numpy as np

from qwen3emb.encoding.vectors import Vectors
from qwen3emb.mining.rules import QueryBlock, ShardHits, search_vectors

__all__ = ["QUERIES_AT_ONCE", "search_shard", "shards"]

QUERIES_AT_ONCE = 4096


def search_shard(queries: Vectors, documents: Vectors, asked: QueryBlock, shard: tuple[int, int], k: int) -> ShardHits:
    """What the documents from `shard[0]` on, before `shard[1]`, have for a block of queries (`search_vectors`)."""
    vectors = documents.read(np.arange(*shard))
    return search_vectors(queries.read(np.asarray(asked.rows)), shard[0], vectors, asked, k)


def shards(asked: QueryBlock, documents: Vectors, rows: int) -> list[tuple[int, int]]:
    """The parts of the documents, of at most `rows` each, that hold what is to be searched or an answer."""
    touched = sorted({*(asked.corpus // rows).tolist(), *(asked.positives // rows).tolist()})
    return [(number * rows, min((number + 1) * rows, documents.count)) for number in touched]
