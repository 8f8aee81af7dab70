"""Intervals that hold together, and the gain of a choice on queries that it did not see."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.metrics.bootstrap import gain_on_unseen, paired_bootstrap, simultaneous_halves


def best(means: np.ndarray) -> np.ndarray:
    return means.argmax(axis=1)


def slow_gain(ours: np.ndarray, others: np.ndarray, rounds: int) -> float:
    """`gain_on_unseen` query by query."""
    count = ours.shape[1]
    gains = []
    for row in np.random.default_rng(0).multinomial(count, [1 / count] * count, size=rounds).tolist():
        unseen = [query for query in range(count) if row[query] == 0]
        if not unseen:
            continue
        means = []
        for figures in (ours.tolist(), others.tolist()):
            seen = [sum(times * figure for times, figure in zip(row, system, strict=True)) for system in figures]
            chosen = figures[seen.index(max(seen))]
            means.append(sum(chosen[query] for query in unseen) / len(unseen))
        gains.append(means[0] - means[1])
    return sum(gains) / len(gains)


def test_the_gain_on_unseen_queries_is_that_of_choosing_again_in_each_sample() -> None:
    rng = np.random.default_rng(3)
    ours, others = rng.random((4, 9)), rng.random((2, 9))
    assert gain_on_unseen(ours, others, best, 200) == pytest.approx(slow_gain(ours, others, 200))


def test_the_best_of_many_that_are_alike_gains_nothing_on_unseen_queries() -> None:
    """On the queries that decide, the best of twelve looks much better than the best of two: by chance alone."""
    seen, unseen = [], []
    for seed in range(60):
        figures = np.random.default_rng(seed).random((14, 40))
        seen.append(figures[:12].mean(axis=1).max() - figures[12:].mean(axis=1).max())
        unseen.append(gain_on_unseen(figures[:12], figures[12:], best, 300))
    spread = np.std(unseen) / len(unseen) ** 0.5
    assert np.mean(seen) > 0.03
    assert abs(np.mean(unseen)) < 3 * spread < 0.03


def test_a_real_gain_is_one_on_unseen_queries_too() -> None:
    rng = np.random.default_rng(5)
    figures = rng.random((5, 40)) + np.array([[0.3], [0], [0], [0], [0]])
    assert gain_on_unseen(figures[:3], figures[3:], best) == pytest.approx(
        figures[0].mean() - figures[3:].mean(), abs=0.1
    )


def test_intervals_of_many_systems_hold_together_and_those_of_one_do_not() -> None:
    together = alone = 0
    for seed in range(120):
        gains = np.random.default_rng(seed).normal(size=(12, 40))  # true gain 0
        together += bool((np.abs(gains.mean(axis=1)) <= simultaneous_halves(gains, 400)).all())
        single = [paired_bootstrap(dict(enumerate(row)), dict.fromkeys(range(40), 0.0), 400) for row in gains.tolist()]
        alone += all(one is not None and one.low <= 0 <= one.high for one in single)
    assert together / 120 > 0.85 > 0.7 > alone / 120


def test_of_one_system_the_interval_is_about_that_of_the_paired_bootstrap() -> None:
    gains = np.random.default_rng(0).normal(size=(1, 80))
    found = paired_bootstrap(dict(enumerate(gains[0].tolist())), dict.fromkeys(range(80), 0.0))
    assert found is not None
    assert simultaneous_halves(gains)[0] == pytest.approx((found.high - found.low) / 2, rel=0.05)
