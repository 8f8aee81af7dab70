"""A search index on storage: vectors and texts as Parquet shards, searched exactly by inner product.

A folder with `vectors/*.parquet` (id, title, text, vector) and `index.json`, the `IndexInfo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.metrics.order import best_first

__all__ = ["SHARDS", "Hit", "IndexInfo", "SearchIndex", "shard_table", "write_info"]

SHARDS = "vectors"
_INFO = "index.json"
_SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class IndexInfo:
    """The size of an index, and how its vectors were made.

    Attributes:
        dimension: length of the vectors.
        count: documents.
        model: fingerprint of the artifact that the embedding model came from.
        instruction: with which queries must be embedded.
        max_tokens: length to which documents were cut.
    """

    dimension: int
    count: int
    model: str
    instruction: str
    max_tokens: int


@dataclass(frozen=True)
class Hit:
    """A retrieved document; `score` is the inner product with the query, the cosine for normalised vectors."""

    id: str
    score: float
    title: str
    text: str


def shard_table(rows: pa.Table, vectors: np.ndarray) -> pa.Table:
    """A shard of the index: id, title and text of `rows` with their `vectors`, (rows, dimension) float32."""
    assert vectors.dtype == np.float32, vectors.dtype
    assert len(vectors) == len(rows), (vectors.shape, len(rows))
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return rows.select(["id", "title", "text"]).append_column("vector", column)


def write_info(folder: Storage, info: IndexInfo) -> None:
    """Write `index.json`; call it when all shards are written."""
    folder.write_json(_INFO, asdict(info))


class SearchIndex:
    """An index in memory."""

    def __init__(self, info: IndexInfo, rows: pa.Table, vectors: np.ndarray) -> None:
        """An index of documents.

        Args:
            info: of the index.
            rows: id, title and text of each document.
            vectors: (count, dimension) float32, of the same documents in the same order.
        """
        self.info = info
        self._rows = rows
        self._vectors = vectors

    @staticmethod
    def open(storage: Storage) -> SearchIndex:
        """Load an index.

        Raises:
            UserError: `storage` has no index, or its shards do not match `index.json`.
        """
        if not storage.exists(_INFO):
            raise UserError(f"{storage.uri}: no {_INFO} there, so no index; run the stage `index` first")
        info = IndexInfo(**storage.read_json(_INFO))
        empty = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
        empty = empty.append(pa.field("vector", pa.list_(pa.float32(), info.dimension)))
        table = storage.read_table(SHARDS, empty)
        if len(table) != info.count or table.schema.field("vector").type != empty.field("vector").type:
            raise UserError(
                f"{storage.uri}: {_INFO} promises {info.count} vectors of {info.dimension} dimensions, "
                f"the shards hold {len(table)} of type {table.schema.field('vector').type}; "
                "run the stage `index` again with --replace"
            )
        pieces = [chunk.flatten().to_numpy() for chunk in table.column("vector").chunks]
        flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.float32)
        return SearchIndex(info, table.select(["id", "title", "text"]), flat.reshape(-1, info.dimension))

    def __len__(self) -> int:
        """The number of documents."""
        return len(self._vectors)

    def search(self, vector: np.ndarray, top: int) -> list[Hit]:
        """The `top` documents nearest to `vector` (dimension,), best first; equal scores in stored order.

        Raises:
            UserError: `vector` has another dimension, or `top` is below 1.
        """
        return self.search_batch(np.asarray(vector)[None], top)[0]

    def search_batch(self, vectors: np.ndarray, top: int) -> list[list[Hit]]:
        """`search` for each row of `vectors` (n, dimension); the hits of each, in the same order.

        Raises:
            UserError: the vectors have another dimension, or `top` is below 1.
        """
        if top < 1:
            raise UserError(f"top {top}: at least 1 document must be asked for")
        if vectors.ndim != 2 or vectors.shape[1] != self.info.dimension:
            raise UserError(f"vectors of shape {vectors.shape}: the index has dimension {self.info.dimension}")
        queries = np.asarray(vectors, dtype=np.float32)
        step = max(1, _SCORES_AT_ONCE // max(1, len(self)))
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), step):
            scores = queries[start : start + step] @ self._vectors.T  # (queries, documents)
            hits.extend(self._hits(row, best_first(row, top).tolist()) for row in scores)
        return hits

    def _hits(self, scores: np.ndarray, rows: Sequence[int]) -> list[Hit]:
        texts = self._rows.take(pa.array(rows, type=pa.int64())).to_pylist()
        return [Hit(r["id"], float(scores[i]), r["title"] or "", r["text"]) for i, r in zip(rows, texts, strict=True)]
