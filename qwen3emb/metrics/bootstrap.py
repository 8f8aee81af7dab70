"""The paired bootstrap over queries: the difference of two systems with its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "paired_bootstrap"]


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
