"""Exact nearest neighbours by inner product, in blocks: memory is one block of scores, not all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["NONE", "top_k"]

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
    query_block: int = 256,
    corpus_block: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows with the largest inner product with each query, best first, equal ones by row number.

    Args:
        queries: (Q, D) float32, finite.
        corpus: (C, D) float32, finite, fewer than 2**32 rows.
        k: neighbours per query, at least 1.
        excluded: for each query the corpus rows that do not count.
        query_block: queries at a time.
        corpus_block: corpus rows at a time.

    Returns:
        Row numbers (Q, k) int64, and their scores (Q, k) float32; `NONE` and -inf where there are fewer.
    """
    assert k >= 1 and len(corpus) <= _LOW, (k, len(corpus))
    assert excluded is None or len(excluded) == len(queries), (len(excluded or ()), len(queries))
    keys = np.full((len(queries), k), _EMPTY, dtype=np.int64)
    for low in range(0, len(queries), query_block):
        rows = slice(low, low + query_block)
        out = None if excluded is None else excluded[rows]
        keys[rows] = _best_keys(queries[rows], corpus, k, out, corpus_block)
    return _decode(keys)


def _best_keys(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    excluded: Sequence[Sequence[int]] | None,
    corpus_block: int,
) -> np.ndarray:
    """(Q, k) keys of the best rows of the whole corpus for one block of queries, descending."""
    best = np.full((len(queries), k), _EMPTY, dtype=np.int64)
    for first in range(0, len(corpus), corpus_block):
        block = corpus[first : first + corpus_block]
        keys = _encode(queries @ block.T, first)  # (Q, block)
        for i, rows in enumerate(excluded or ()):
            keys[i, [r - first for r in rows if first <= r < first + len(block)]] = _EMPTY
        best = np.concatenate([best, keys], axis=1)
        best = np.partition(best, best.shape[1] - k, axis=1)[:, -k:]
    return np.sort(best, axis=1)[:, ::-1]


def _encode(scores: np.ndarray, first: int) -> np.ndarray:
    """One int64 per score that sorts by score, then by descending row number, so that ties have one answer.

    The bits of a float32 sort like the number where it is positive, and backwards where it is negative.
    """
    assert np.isfinite(scores).all(), "vectors hold NaN or infinity"
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.int32).astype(np.int64)  # -0 is 0
    rows = np.arange(first, first + scores.shape[1], dtype=np.int64)
    return (np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) | (_LOW - rows)


def _decode(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ordered = keys >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    empty = keys == _EMPTY
    return np.where(empty, NONE, _LOW - (keys & _LOW)), np.where(empty, -np.inf, bits.view(np.float32))
