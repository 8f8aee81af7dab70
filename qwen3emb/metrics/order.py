"""The order of scores: the one rule for who is best, and who of those that are equally good."""

from __future__ import annotations

import numpy as np

__all__ = ["best_first"]


def best_first(scores: np.ndarray, top: int | None = None) -> np.ndarray:
    """Indices of the `top` highest of (n,) scores (None: of all), highest first, equal ones by lower index, NaN last.

    `encoding.nearest` keeps the same order for vectors, in blocks. Search engines inside mteb, pytrec_eval and faiss
    alone keep no promise about scores that are equal.
    """
    assert top is None or top >= 1, top
    falling = -scores
    if top is None or top >= len(scores):
        return np.argsort(falling, kind="stable")
    worst = np.partition(falling, top - 1)[top - 1]
    candidates = np.flatnonzero(~(falling > worst))  # nothing is above NaN, so that all stay where it is the worst
    order: np.ndarray = candidates[np.argsort(falling[candidates], kind="stable")[:top]]
    return order
