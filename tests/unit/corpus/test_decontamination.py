from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.text.decontamination import near_matches


def signatures(count: int, places: int, base: np.ndarray, seed: int) -> np.ndarray:
    """Copies of the rows of `base` in which 0 to all places were changed."""
    random = np.random.default_rng(seed)
    rows = base[random.integers(len(base), size=count)].copy()
    for row in rows:
        changed = random.permutation(places)[: random.integers(places // 2)]
        row[changed] = random.integers(2**63, size=len(changed), dtype=np.uint64)
    return rows


@pytest.mark.parametrize("places", [64, 61])
@pytest.mark.parametrize("threshold", [0.55, 0.8, 0.97, 1.0])
def test_it_finds_what_comparing_everything_with_everything_finds(threshold: float, places: int) -> None:
    base = np.random.default_rng(0).integers(2**63, size=(40, places), dtype=np.uint64)
    against = np.concatenate([signatures(200, places, base, 1), base[:3]])
    queries = np.concatenate([signatures(300, places, base, 2), base[:3]])
    share = (queries[:, None, :] == against[None, :, :]).mean(axis=2)  # (queries, against)
    found = near_matches(queries, against, threshold)
    expected = (share >= threshold - 1e-9).any(axis=1)
    assert np.array_equal(found >= 0, expected) and 0 < expected.sum() < len(queries)
    assert all(share[i, j] >= threshold - 1e-9 for i, j in enumerate(found) if j >= 0)


def test_nothing_matches_nothing() -> None:
    some, none = np.ones((2, 64), dtype=np.uint64), np.empty((0, 64), dtype=np.uint64)
    assert near_matches(some, none, 0.8).tolist() == [-1, -1]
    assert near_matches(none, some, 0.8).tolist() == []
