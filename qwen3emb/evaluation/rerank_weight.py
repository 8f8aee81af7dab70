"""Choose the weight of the reranker's score on a dev set, by what the choice gains on queries that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3emb.evaluation.ranking import Ranking, ranking_per_query, reranked
from qwen3emb.metrics.bootstrap import gain_on_unseen
from qwen3emb.text.retrieval_set import RetrievalSet

__all__ = ["WeightChoice", "chosen_share", "chosen_weight"]

_GRID = [round(0.1 * n, 1) for n in range(11)]
_ROUNDS = 4000
_ERRORS = 0.84
"""Standard errors below the gain on unseen queries that have to be above zero: one side of four chances to one."""


@dataclass(frozen=True)
class WeightChoice:
    """The chosen share of the reranker's score, and the evidence for it.

    Attributes:
        weight: the share; 0 = no reranker.
        best: the share above 0 with the highest nDCG@10.
        gain: the mean nDCG@10 of `best` minus that of the share 0, on the queries that it was chosen on.
        unseen: what such a choice gains on queries that it has not seen (`gain_on_unseen`).
        error: standard error of `gain`.
        queries: judged queries that it was chosen on.
    """

    weight: float
    best: float
    gain: float
    unseen: float
    error: float
    queries: int


def chosen_weight(data: RetrievalSet, first: Ranking, scores: Sequence[np.ndarray]) -> WeightChoice:
    """Choose the share of the reranker's score, of 0, 0.1, ... 1, as `chosen_share` does.

    Args:
        data: the dev set.
        first: the ranking without the reranker.
        scores: see `reranked`.
    """
    return chosen_share(np.array([_ndcg(data, reranked(first, scores, weight)) for weight in _GRID]))


def chosen_share(figures: np.ndarray, rounds: int = _ROUNDS, seed: int = 0) -> WeightChoice:
    """Choose the best share if such a choice gains on unseen queries, by more than `_ERRORS` standard errors; else 0.

    The best of many shares looks good by chance alone, but not on queries that it was not chosen on. Of equally good
    shares the larger is chosen, above 0.

    Args:
        figures: (11, queries) nDCG@10 with the shares 0, 0.1, ... 1.
        rounds: samples of queries.
        seed: of the random samples.
    """
    count = figures.shape[1]
    if count < 2:
        return WeightChoice(0.0, 0.0, 0.0, 0.0, 0.0, count)
    gains = figures - figures[0]
    best = 1 + int(_last_of_the_best(gains[1:].mean(axis=1)[None])[0])
    unseen = gain_on_unseen(gains, gains[:1], _last_of_the_best, rounds, seed)
    gain, error = float(gains[best].mean()), float(gains[best].std(ddof=1)) / count**0.5
    taken = gain > 0 and unseen > _ERRORS * error
    return WeightChoice(_GRID[best] if taken else 0.0, _GRID[best], gain, unseen, error, count)


def _last_of_the_best(means: np.ndarray) -> np.ndarray:
    """(samples,) the largest of each sample's shares that is as good as the best; means: (samples, shares)."""
    rounded = means.round(6)[:, ::-1]
    return np.asarray(means.shape[1] - 1 - rounded.argmax(axis=1))


def _ndcg(data: RetrievalSet, ranking: Ranking) -> np.ndarray:
    """(Q,) nDCG@10 of each judged query."""
    return np.array([figures["ndcg@10"] for figures in ranking_per_query(data, ranking, [10]).values()])
