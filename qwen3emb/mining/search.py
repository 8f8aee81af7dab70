"""The search of the stage `mine`: one Ray task for a block of queries and a shard of the documents.

A task holds one shard's vectors, `mine.shard_rows` of them, and returns a few numbers for each query. The driver merges
the hits of the shards for one block, and holds no vectors of documents.
"""

from __future__ import annotations

import numpy as np

from qwen3emb.encoding.vectors import Vectors
from qwen3emb.mining.rules import QueryBlock, ShardHits, search_vectors

__all__ = ["QUERIES_AT_ONCE", "search_shard", "shards"]

QUERIES_AT_ONCE = 4096


def search_shard(queries: Vectors, documents: Vectors, block: QueryBlock, shard: tuple[int, int], k: int) -> ShardHits:
    """The hits of documents `shard[0]` to `shard[1] - 1` for a block of queries (`search_vectors`)."""
    vectors = documents.read(np.arange(*shard))
    return search_vectors(queries.read(np.asarray(block.rows)), shard[0], vectors, block, k)


def shards(block: QueryBlock, documents: Vectors, rows: int) -> list[tuple[int, int]]:
    """The shards of the documents that a block needs: those with a document of its corpus or one of its positives.

    Args:
        block: the queries, their corpus and their positives.
        documents: vectors of `MiningPlan.documents`.
        rows: documents of a shard.

    Returns:
        (first row, row behind the last one) of each shard, ascending.
    """
    touched = sorted({*(block.corpus // rows).tolist(), *(block.positives // rows).tolist()})
    return [(number * rows, min((number + 1) * rows, documents.count)) for number in touched]
