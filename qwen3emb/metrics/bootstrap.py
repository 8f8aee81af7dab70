"""The bootstrap over queries: the difference of two systems with its interval, and of many systems at once.

The best of many systems looks good by chance alone. `simultaneous_halves` widens the intervals for that;
`gain_on_unseen` says what the choice itself is worth on queries that it did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "gain_on_unseen", "paired_bootstrap", "simultaneous_halves"]


@dataclass(frozen=True)
class Difference:
    """A mean difference over queries and its 95 % confidence interval.

    Attributes:
        mean: mean over queries of the first system's figure minus the second's.
        low: lower end of the interval.
        high: upper end.
        queries: count of queries that both systems have.
    """

    mean: float
    low: float
    high: float
    queries: int

    @property
    def sure(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    one: Mapping[str, float], other: Mapping[str, float], rounds: int = 10_000, seed: int = 0
) -> Difference | None:
    """The mean difference of two systems over the queries that both have, with a 95 % interval by resampling queries.

    Args:
        one: query -> figure of the first system.
        other: query -> figure of the second one; queries in only one of the two are left out.
        rounds: number of samples, each drawn with replacement.
        seed: of the random samples.

    Returns:
        None where no query is in both.
    """
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    gains = np.array([one[query] - other[query] for query in shared])
    random, block = np.random.default_rng(seed), max(1, 10_000_000 // len(gains))
    means = np.concatenate(
        [
            gains[random.integers(len(gains), size=(min(block, rounds - start), len(gains)))].mean(axis=1)
            for start in range(0, rounds, block)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(gains.mean()), float(low), float(high), len(shared))


def simultaneous_halves(gains: np.ndarray, rounds: int = 4000, seed: int = 0) -> np.ndarray:
    """Half the widths of 95 % intervals around the mean gains of many systems that hold all at once.

    Each is as many standard errors as the worst of all systems' means keeps to in 95 % of the samples of queries.

    Args:
        gains: (systems, queries) of each system over one baseline; two queries at least.
        rounds: number of samples, each drawn with replacement.
        seed: of the random samples.

    Returns:
        (systems,).
    """
    count = gains.shape[1]
    means, errors = gains.mean(axis=1), gains.std(axis=1, ddof=1) / count**0.5
    deviations = np.abs(_drawn(count, rounds, seed) @ gains.T / count - means) / np.maximum(errors, 1e-12)
    halves: np.ndarray = float(np.quantile(deviations.max(axis=1), 0.95)) * errors
    return halves


def gain_on_unseen(
    ours: np.ndarray,
    others: np.ndarray,
    choose: Callable[[np.ndarray], np.ndarray],
    rounds: int = 4000,
    seed: int = 0,
) -> float:
    """What the best of our systems gains over the best of the others on queries that neither was chosen on.

    In each sample of the queries (bootstrap) both are chosen anew, and compared on the queries that are not in the
    sample; the mean over the samples. It is free of the advantage of a choice among many on the queries that decide.

    Args:
        ours: (systems, queries) figures; two queries at least.
        others: (systems, queries) figures of the same queries.
        choose: (samples, systems) means -> (samples,) number of the chosen system.
        rounds: number of samples, each drawn with replacement.
        seed: of the random samples.
    """
    count = ours.shape[1]
    drawn = _drawn(count, rounds, seed)
    drawn = drawn[(drawn == 0).any(axis=1)]
    unseen = drawn == 0

    def on_unseen(figures: np.ndarray) -> np.ndarray:
        means = unseen @ figures.T / unseen.sum(axis=1, keepdims=True)
        return np.asarray(means[np.arange(len(means)), choose(drawn @ figures.T / count)])

    return float((on_unseen(ours) - on_unseen(others)).mean())


def _drawn(count: int, rounds: int, seed: int) -> np.ndarray:
    """(rounds, count) how often each query is in each sample."""
    return np.asarray(np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=rounds))
