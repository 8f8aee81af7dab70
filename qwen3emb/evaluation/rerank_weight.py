"""Choose the weight of the reranker's score on a dev set, with a correction for comparing several weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3emb.evaluation.ranking import Ranking, ranking_per_query, reranked
from qwen3emb.metrics.bootstrap import simultaneous_halves
from qwen3emb.text.retrieval_set import RetrievalSet

__all__ = ["WeightChoice", "best_weight", "chosen_weight"]

_GRID = [round(0.1 * n, 1) for n in range(11)]
_ROUNDS = 4000


@dataclass(frozen=True)
class WeightChoice:
    """The chosen share of the reranker's score, and the evidence for it.

    Attributes:
        weight: the share; 0 = no reranker, where no share above 0 is clearly better.
        best: the chosen share; where none is, the share above 0 with the highest nDCG@10.
        gain: the mean nDCG@10 of `best` minus that of the share 0.
        low: lower end of its 95 % interval, simultaneous over all shares.
        high: upper end.
        queries: judged queries that it was chosen on.
    """

    weight: float
    best: float
    gain: float
    low: float
    high: float
    queries: int


def best_weight(data: RetrievalSet, first: Ranking, scores: Sequence[np.ndarray]) -> float:
    """The `weight` of `chosen_weight`."""
    return chosen_weight(data, first, scores).weight


def chosen_weight(
    data: RetrievalSet, first: Ranking, scores: Sequence[np.ndarray], rounds: int = _ROUNDS, seed: int = 0
) -> WeightChoice:
    """Choose, of the shares 0.1, 0.2, ... 1 that are clearly better than 0, the one with the highest nDCG@10.

    The best of many shares looks good by chance alone, so the intervals of all shares' gains are those of
    `simultaneous_halves`. A gain is clear where the whole interval lies above zero. A large share may gain more on
    average and be less sure of it; it is not chosen before a smaller one that is sure. Without a clear gain the share
    is 0; of equally good shares the larger is chosen.

    Args:
        data: the dev set.
        first: the ranking without the reranker.
        scores: see `reranked`.
        rounds: samples of queries.
        seed: of the random samples.
    """
    figures = np.array([_ndcg(data, reranked(first, scores, weight)) for weight in _GRID])  # (shares, queries)
    gains = figures - figures[0]
    count = gains.shape[1]
    if count < 2:
        return WeightChoice(0.0, 0.0, 0.0, 0.0, 0.0, count)
    means, halves = gains.mean(axis=1), simultaneous_halves(gains, rounds, seed)
    shares = range(1, len(_GRID))
    # All intervals hold together, so any of those that lie above zero may be taken.
    clear = [i for i in shares if means[i] > halves[i]]
    best = max(clear or shares, key=lambda i: (round(float(means[i]), 6), i))
    gain, half = float(means[best]), float(halves[best])
    return WeightChoice(_GRID[best] if clear else 0.0, _GRID[best], gain, gain - half, gain + half, count)


def _ndcg(data: RetrievalSet, ranking: Ranking) -> np.ndarray:
    """(Q,) nDCG@10 of each judged query."""
    return np.array([figures["ndcg@10"] for figures in ranking_per_query(data, ranking, [10]).values()])
