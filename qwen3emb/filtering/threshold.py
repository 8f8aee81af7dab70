"""Which synthetic pairs are kept for the supervised stage, by query-document cosine (RECIPE section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3emb.encoding.nearest import top_k

__all__ = ["QUANTILES", "Histogram", "draw", "histogram", "keep", "round_trip", "threshold_for"]

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_BAR = 40


@dataclass(frozen=True)
class Histogram:
    """The distribution of cosines over [-1, 1].

    Attributes:
        edges: (bins + 1,) ascending; a bin holds [low, high), the last one [low, high].
        counts: (bins,) pairs per bin.
        quantiles: share of pairs -> the cosine which that share does not exceed; empty without pairs.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    quantiles: dict[float, float]

    def lines(self, threshold: float) -> list[str]:
        """One line of text per bin between the outermost that hold pairs; `*` marks the threshold's bin."""
        filled = [i for i, n in enumerate(self.counts) if n]
        if not filled:
            return ["no pairs"]
        most = max(self.counts)
        last = len(self.counts) - 1
        lines = []
        for i in range(filled[0], filled[-1] + 1):
            low, high, count = self.edges[i], self.edges[i + 1], self.counts[i]
            marked = low <= threshold < high or (i == last and threshold == high)
            bar = "#" * round(_BAR * count / most)
            lines.append(f"{low:+.2f} .. {high:+.2f} {'*' if marked else ' '} {count:>8} {bar}".rstrip())
        return lines


def histogram(scores: np.ndarray, bins: int) -> Histogram:
    """Histogram of cosines.

    Args:
        scores: (pairs,) cosines; values beyond [-1, 1] by rounding are clipped.
        bins: bins of equal width over [-1, 1].
    """
    inside = np.clip(scores.astype(np.float64), -1.0, 1.0)
    counts, edges = np.histogram(inside, bins=bins, range=(-1.0, 1.0))
    quantiles = {q: float(np.quantile(inside, q)) for q in QUANTILES} if len(inside) else {}
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), quantiles)


def round_trip(
    queries: np.ndarray, of_query: np.ndarray, documents: np.ndarray, of_document: np.ndarray, k: int
) -> np.ndarray:
    """Round-trip consistency: whether each pair's document is among the k documents nearest to its query.

    Args:
        queries: (n, D) float32 unit vectors of the distinct queries.
        of_query: (pairs,) row of `queries` of each pair.
        documents: (m, D) float32 unit vectors of the distinct documents.
        of_document: (pairs,) row of `documents` of each pair.
        k: number of nearest documents.

    Returns:
        (pairs,) booleans.
    """
    nearest, _ = top_k(queries, documents, k)
    retrieved: np.ndarray = (nearest[of_query] == of_document[:, None]).any(axis=1)
    return retrieved


def keep(scores: Sequence[float] | np.ndarray, threshold: float) -> np.ndarray:
    """(pairs,) booleans: the cosine is above the threshold, strictly."""
    # float64: a float32 score must not be compared with the threshold rounded to float32
    above: np.ndarray = np.asarray(scores, dtype=np.float64) > threshold
    return above


def threshold_for(scores: np.ndarray, share: float) -> float:
    """The threshold above which `share` of the scores lie; a smaller share where several scores equal the threshold.

    Args:
        scores: (pairs,) cosines.
        share: in (0, 1]; 1 gives a threshold below every cosine.
    """
    if not len(scores) or share >= 1:
        return -1.1
    dropped = len(scores) - int(np.floor(share * len(scores)))
    return float(np.partition(scores.astype(np.float64), dropped - 1)[dropped - 1])


def draw(count: int, sample: int | None, seed: int) -> np.ndarray:
    """Ascending indices of the pairs to score: `sample` of `count` at random; all where `sample` is None or larger."""
    if sample is None or sample >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size=sample, replace=False))
