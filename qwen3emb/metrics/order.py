"""The order of documents by score, with one rule for equal scores everywhere."""

from __future__ import annotations

import numpy as np

__all__ = ["best_first"]


def best_first(scores: np.ndarray, top: int | None = None) -> np.ndarray:
    """Sort scores: highest first, equal ones by lower index, NaN last.

    `encoding.nearest` keeps the same order when it searches vectors in blocks. mteb's search, pytrec_eval and faiss
    order equal scores in other ways.

    Args:
        scores: (n,).
        top: how many to return, at least 1; None = all.

    Returns:
        (min(top, n),) int64 indices.
    """
    assert top is None or top >= 1, top
    falling = -scores
    if top is None or top >= len(scores):
        return np.argsort(falling, kind="stable")
    worst = np.partition(falling, top - 1)[top - 1]
    candidates = np.flatnonzero(~(falling > worst))  # not `<=`: with NaN as the worst score no candidate may be lost
    order: np.ndarray = candidates[np.argsort(falling[candidates], kind="stable")[:top]]
    return order
