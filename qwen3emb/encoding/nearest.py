"""Exact nearest neighbours by inner product, in blocks: memory is one block of vectors, not the corpus.

A neighbour is one int64 key that sorts by score, then by descending row number. So the best neighbours of two parts of
a corpus are the largest keys of both, and ties are broken alike however the corpus is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

__all__ = ["NONE", "best_keys", "decoded_keys", "merged_keys", "top_k"]

NONE = -1
"""Row number where there are fewer than k neighbours."""

_EMPTY = np.iinfo(np.int64).min
_LOW = 0xFFFFFFFF


def top_k(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    *,
    corpus_block: int = 65_536,
) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows with the largest inner product with each query, best first, equal ones by row number.

    Args:
        queries: (Q, D) float32, finite.
        corpus: (C, D) float32, finite, fewer than 2**32 rows.
        k: neighbours per query, at least 1.
        excluded: for each query the corpus rows that must not be its neighbours.
        corpus_block: corpus rows at a time.

    Returns:
        Row numbers (Q, k) int64, and their scores (Q, k) float32; `NONE` and -inf where there are fewer.
    """
    keys = np.full((len(queries), k), _EMPTY, dtype=np.int64)
    for first in range(0, len(corpus), corpus_block):
        block = corpus[first : first + corpus_block]
        rows = np.arange(first, first + len(block), dtype=np.int64)
        keys = merged_keys(keys, best_keys(queries, block, rows, k, excluded))
    return decoded_keys(keys)


def best_keys(
    queries: np.ndarray,
    block: np.ndarray,
    rows: np.ndarray,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """(Q, k) int64 keys of the best rows of one block of the corpus, descending.

    Args:
        queries: (Q, D) float32, finite.
        block: (B, D) float32, finite.
        rows: (B,) int64, ascending: the numbers of the block's rows in the corpus, below 2**32.
        k: neighbours per query, at least 1.
        excluded: for each query the numbers of rows that must not be its neighbours; they need not be in this block.
    """
    assert k >= 1 and len(block) == len(rows), (k, len(block), len(rows))
    assert len(rows) == 0 or rows[-1] <= _LOW, rows[-1]
    assert excluded is None or len(excluded) == len(queries), (len(excluded or ()), len(queries))
    assert np.isfinite(queries).all() and np.isfinite(block).all(), "vectors hold NaN or infinity"
    if not len(queries) or not len(block):
        return np.full((len(queries), k), _EMPTY, dtype=np.int64)
    barred = [_places(rows, out) for out in excluded or [()] * len(queries)]
    depth = min(len(block), k + max(map(len, barred)) + 1)  # one more, to see whether the last place is shared
    scores, places = faiss.knn(
        np.ascontiguousarray(queries), np.ascontiguousarray(block), depth, metric=faiss.METRIC_INNER_PRODUCT
    )
    keys = _encode(scores, rows[places])
    for i, out in enumerate(barred):
        if len(out):
            keys[i, np.isin(places[i], out)] = _EMPTY
    keys = np.sort(keys, axis=1)[:, : -k - 1 : -1]
    if keys.shape[1] < k:
        keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=_EMPTY)
    if depth < len(block):
        for i in np.flatnonzero(keys[:, -1] >> 32 == _ordered(scores[:, -1])):
            keys[i] = _sorted_keys(queries[i], block, rows, k, barred[i])  # faiss takes any of those that are equal
    return keys


def merged_keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(Q, k) the best k keys of two parts of a corpus, descending; both (Q, k)."""
    both = np.concatenate([first, second], axis=1)
    return np.sort(both, axis=1)[:, : -first.shape[1] - 1 : -1]


def decoded_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers int64 and scores float32 of keys, in the shape of `keys`; `NONE` and -inf for empty places."""
    ordered = keys >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    empty = keys == _EMPTY
    return np.where(empty, NONE, _LOW - (keys & _LOW)), np.where(empty, -np.inf, bits.view(np.float32))


def _places(rows: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Positions in the ascending `rows` of the wanted row numbers; those that are not in `rows` are ignored."""
    if not len(wanted):
        return np.empty(0, dtype=np.int64)
    places = np.minimum(np.searchsorted(rows, np.asarray(wanted, dtype=np.int64)), len(rows) - 1)
    return np.unique(places[rows[places] == np.asarray(wanted)])


def _sorted_keys(query: np.ndarray, block: np.ndarray, rows: np.ndarray, k: int, barred: np.ndarray) -> np.ndarray:
    """(k,) best keys of one query, descending, by sorting the keys of the whole block."""
    keys = _encode(block @ query, rows)
    keys[barred] = _EMPTY
    return np.sort(keys)[: -k - 1 : -1]


def _ordered(scores: np.ndarray) -> np.ndarray:
    """The bits of float32 scores as int64 that sort like them: as they are if positive, else backwards."""
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.int32).astype(np.int64)  # -0 is 0
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _encode(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The keys of float32 scores and row numbers of one shape."""
    keys: np.ndarray = (_ordered(scores) << 32) | (_LOW - rows)
    return keys
