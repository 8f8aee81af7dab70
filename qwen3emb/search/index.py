"""A search index on storage: vectors and texts as Parquet shards, searched by inner product.

A folder with `vectors/*.parquet` (id, title, text, vector), `calibration.npy` and `index.json`, the `IndexInfo`.
float32 vectors are searched exactly; what int8 and binary ones have beside the shards is in `search/small.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.quantised import Kind
from qwen3emb.metrics.order import best_first
from qwen3emb.search.small import Nearest, column_vectors, open_small, write_calibration, write_small

__all__ = ["SHARDS", "Hit", "IndexInfo", "SearchIndex", "finish_index", "read_info", "shard_table", "write_info"]

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
        vectors: what is searched; the shards hold float32 whatever it is. An index without this entry has float32.
        rescore: so many times the hits asked for are rescored with vectors of full precision; 0 = none.
    """

    dimension: int
    count: int
    model: str
    instruction: str
    max_tokens: int
    vectors: Kind = "float32"
    rescore: int = 0


@dataclass(frozen=True)
class Hit:
    """A retrieved document.

    `score` is the inner product with the query, the cosine for normalised vectors; without rescoring it is that of the
    document's int8 vector, or of the signs of both where the index is binary.
    """

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


def finish_index(folder: Storage, info: IndexInfo) -> None:
    """Write what is made of the shards, then `index.json`; call it when all shards are written."""
    write_calibration(folder, SHARDS, info.dimension)
    if info.vectors != "float32":
        write_small(folder, SHARDS, info.vectors, info.dimension, rescore=info.rescore > 0)
    write_info(folder, info)


def write_info(folder: Storage, info: IndexInfo) -> None:
    """Write `index.json`, which makes the folder an index."""
    folder.write_json(_INFO, asdict(info))


def read_info(folder: Storage) -> IndexInfo:
    """Read `index.json`.

    Raises:
        UserError: `folder` has no index.
    """
    if not folder.exists(_INFO):
        raise UserError(f"{folder.uri}: no {_INFO} there, so no index; run the stage `index` first")
    return IndexInfo(**folder.read_json(_INFO))


class SearchIndex:
    """An opened index: float32 vectors and texts in memory, or small vectors in memory and texts on disk."""

    def __init__(self, info: IndexInfo, rows: pa.Table, nearest: Nearest) -> None:
        """An index of documents.

        Args:
            info: of the index.
            rows: id, title and text of each document.
            nearest: finds the rows of the same documents.
        """
        self.info = info
        self._rows = rows
        self._nearest = nearest

    @staticmethod
    def open(storage: Storage) -> SearchIndex:
        """Load an index.

        Raises:
            UserError: `storage` has no index, or its files do not match `index.json`.
        """
        info = read_info(storage)
        if info.vectors != "float32":
            return SearchIndex(info, *open_small(storage, info.vectors, info.dimension, info.count, info.rescore))
        empty = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
        empty = empty.append(pa.field("vector", pa.list_(pa.float32(), info.dimension)))
        table = storage.read_table(SHARDS, empty)
        found = table.schema.field("vector").type
        if len(table) != info.count or found != empty.field("vector").type:
            raise UserError(
                f"{storage.uri}: {_INFO} promises {info.count} vectors of {info.dimension} dimensions, "
                f"the shards hold {len(table)} of type {found}; run the stage `index` again with --replace"
            )
        return SearchIndex(info, table.select(["id", "title", "text"]), _exact(column_vectors(table, info.dimension)))

    def __len__(self) -> int:
        """The number of documents."""
        return len(self._rows)

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
        rows, scores = self._nearest(np.asarray(vectors, dtype=np.float32), top)
        return [[self._hit(*hit) for hit in zip(*pair, strict=True)] for pair in zip(rows, scores, strict=True)]

    def _hit(self, row: int, score: float) -> Hit:
        # not `take`, which puts the texts of all documents together first
        found = self._rows.slice(int(row), 1).to_pylist()[0]
        return Hit(found["id"], float(score), found["title"] or "", found["text"])


def _exact(documents: np.ndarray) -> Nearest:
    """The full sort by inner product with (documents, D) float32; equal scores in stored order."""
    step = max(1, _SCORES_AT_ONCE // max(1, len(documents)))

    def search(queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        rows, values = [], []
        for start in range(0, len(queries), step):
            for scores in queries[start : start + step] @ documents.T:  # (queries, documents)
                rows.append(best_first(scores, top))
                values.append(scores[rows[-1]])
        shape = (len(queries), min(top, len(documents)))
        return np.array(rows, dtype=np.int64).reshape(shape), np.array(values, dtype=np.float32).reshape(shape)

    return search
