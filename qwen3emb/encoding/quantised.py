"""Small vectors: documents as int8 or as bits in memory, searched with float32 queries, the best of them rescored.

int8: one byte per dimension, equal steps between the ends of the dimension's range (`calibrated`); what lies outside of
the range becomes its nearer end. A query stays float32 and is multiplied with the decoded documents, so that only the
documents lose precision. binary: one bit per dimension, whether it is above zero; queries become bits too, and the
Hamming distance is searched. faiss does both, in memory of one byte or one bit per dimension.

`rescored` orders the first hits anew by the inner product with vectors of full precision, which may lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import faiss
import numpy as np

from qwen3emb.encoding.nearest import top_k

__all__ = [
    "DISK",
    "Kind",
    "SmallVectors",
    "bits",
    "calibrated",
    "int8_codes",
    "rank",
    "rescored",
    "shortened",
    "vector_bytes",
]

Kind = Literal["float32", "int8", "binary"]

DISK = np.float16
"""Type of the vectors that hits are rescored with; of a unit vector's entries it keeps eleven bits."""

_COUNTED = 1 << 25  # row numbers at once: for each query faiss notes up to k rows of each distance


def calibrated(vectors: np.ndarray) -> np.ndarray:
    """(2, D) float32: the least and the greatest value of each dimension of (n, D) `vectors`, n at least 1."""
    assert len(vectors), "no vectors to calibrate with"
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def int8_codes(vectors: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """(n, D) int8 of float32 vectors: the number of the step, -128 to 127, that each value lies in.

    Args:
        vectors: (n, D) float32.
        ranges: (2, D) float32, of `calibrated`. A code c stands for low + (c + 128.5) * (high - low) / 255.
    """
    codes: np.ndarray = _scalar(ranges).sa_encode(_plain(vectors))
    return (codes ^ np.uint8(0x80)).view(np.int8)


def bits(vectors: np.ndarray) -> np.ndarray:
    """(n, ceil(D / 8)) uint8: whether each value is above zero, eight to a byte, the first in the highest bit."""
    return np.packbits(vectors > 0, axis=1)


def vector_bytes(kind: Kind, dimension: int) -> int:
    """Bytes of one document's vector in memory."""
    return {"float32": 4 * dimension, "int8": dimension, "binary": -(-dimension // 8)}[kind]


def shortened(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """The leading dimensions of (n, D) float32 vectors, normalised again; the vectors themselves where all are kept."""
    if dimension == vectors.shape[1]:
        return vectors
    leading = vectors[:, :dimension]
    norms = np.linalg.norm(leading, axis=1, keepdims=True)
    return np.asarray(leading / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


class SmallVectors:
    """Documents in memory as int8 or bits, in the order in which they were added."""

    def __init__(self, kind: Kind, dimension: int, ranges: np.ndarray | None = None) -> None:
        """No documents yet.

        Args:
            kind: `int8` or `binary`.
            dimension: of the vectors.
            ranges: (2, D) float32 of `calibrated`, for int8.
        """
        assert kind != "float32" and (kind == "binary" or ranges is not None), kind
        self.kind, self.dimension = kind, dimension
        self._index: Any = _scalar(ranges) if ranges is not None and kind == "int8" else _hamming(dimension)

    def __len__(self) -> int:
        """The number of documents."""
        return int(self._index.ntotal)

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """(n, bytes) uint8, what `add` takes, of (n, D) float32 vectors."""
        return bits(vectors) if self.kind == "binary" else np.asarray(self._index.sa_encode(_plain(vectors)))

    def add(self, codes: np.ndarray) -> None:
        """Add documents, (n, bytes) uint8 of `codes`."""
        codes = np.ascontiguousarray(codes)
        if self.kind == "binary":
            self._index.add(codes)
        else:
            self._index.add_sa_codes(codes)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents nearest to each query, best first, equal ones in the order in which they were added.

        Args:
            queries: (Q, D) float32.
            k: documents of each query, at least 1.

        Returns:
            Row numbers (Q, min(k, documents)) int64 and scores float32: of int8 the inner product with the decoded
            document, of bits 1 - 2 * (share of bits that differ), the cosine of the vectors of signs.
        """
        k = min(k, len(self))
        if not k or not len(queries):
            return np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        if self.kind == "binary":
            block = max(1, _COUNTED // (k * (self._index.d + 1)))
            parts = [self._index.search(bits(queries[i : i + block]), k) for i in range(0, len(queries), block)]
            distances, rows = (np.concatenate(side) for side in zip(*parts, strict=True))
            return rows, 1 - distances.astype(np.float32) * np.float32(2 / self.dimension)
        depth = min(k + 1, len(self))
        scores, rows = self._index.search(_plain(queries), depth)
        while depth < len(self) and (scores[:, -1] == scores[:, k - 1]).any():  # faiss keeps any of equal ones
            depth = min(2 * depth, len(self))
            scores, rows = self._index.search(_plain(queries), depth)
        return _ordered(rows, scores, k)


def rescored(
    queries: np.ndarray, rows: np.ndarray, read: Callable[[np.ndarray], np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of the hits by the inner product with vectors of full precision, equal ones by row number.

    Args:
        queries: (Q, D) float32.
        rows: (Q, n) row numbers of each query's hits.
        read: gives the vectors of ascending row numbers, (rows, D).
        k: hits to keep of each query.

    Returns:
        Row numbers (Q, min(k, n)) int64 and scores float32.
    """
    scores = np.empty(rows.shape, dtype=np.float32)
    for i, hits in enumerate(rows):
        ascending = np.sort(hits)
        if len(hits):
            found = read(ascending).astype(np.float32, copy=False) @ queries[i]
            scores[i] = found[np.searchsorted(ascending, hits)]
    return _ordered(rows, scores, k)


def rank(
    queries: np.ndarray, documents: np.ndarray, kind: Kind, rescore: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search documents as an index of small vectors does, all of it in memory; for evaluations and benchmarks.

    int8 is calibrated on all documents.

    Args:
        queries: (Q, D) float32.
        documents: (C, D) float32.
        kind: of the documents.
        rescore: so many times `top` hits are rescored with vectors of type `DISK`; 0 = none.
        top: documents of each query.

    Returns:
        Row numbers (Q, min(top, C)) int64 and scores float32, best first.
    """
    if kind == "float32":
        return top_k(queries, documents, min(top, len(documents)))
    small = SmallVectors(kind, documents.shape[1], calibrated(documents) if kind == "int8" else None)
    small.add(small.codes(documents))
    rows, scores = small.search(queries, top * max(1, rescore))
    if not rescore:
        return rows, scores
    disk = documents.astype(DISK)
    return rescored(queries, rows, lambda chosen: disk[chosen], top)


def _scalar(ranges: np.ndarray) -> faiss.IndexScalarQuantizer:
    """An int8 index with the ranges that it would have to learn."""
    index = faiss.IndexScalarQuantizer(ranges.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.concatenate([ranges[0], ranges[1] - ranges[0]]).astype(np.float32), index.sq.trained)
    index.is_trained = True
    return index


def _hamming(dimension: int) -> Any:
    index: Any = faiss.IndexBinaryFlat(8 * -(-dimension // 8))
    index.use_heap = False  # counts rows by distance instead, which keeps equal ones in their order
    return index


def _plain(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _ordered(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k hits by falling score, equal ones by row number."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1).astype(np.int64), np.take_along_axis(scores, order, axis=1)
