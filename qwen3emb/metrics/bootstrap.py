"""How sure a difference between two systems is: the paired bootstrap over queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "paired_bootstrap"]


@dataclass(frozen=True)
class Difference:
    """A mean difference over queries and its 95 % confidence interval.

    Attributes:
        mean: of one system's figure minus the other's.
        low: lower end of the interval.
        high: upper end.
        queries: that both systems have.
    """

    mean: float
    low: float
    high: float
    queries: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    one: Mapping[str, float], other: Mapping[str, float], rounds: int = 10_000, seed: int = 0
) -> Difference | None:
    """The difference of two systems over the queries that both have, resampled with replacement; None without any.

    Args:
        one: query -> figure of one system.
        other: of the other; not all queries need to be in both.
        rounds: samples drawn.
        seed: of the samples.
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
