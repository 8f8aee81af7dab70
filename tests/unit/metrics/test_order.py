"""The best of scores against Python's own sort."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.metrics.order import best_first

FEW = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 0.25, 1.0, math.inf, math.nan])


@given(st.lists(FEW, max_size=40), st.none() | st.integers(1, 45))
def test_the_best_are_those_of_a_full_sort(scores: list[float], top: int | None) -> None:
    numbers = [i for i, score in enumerate(scores) if not math.isnan(score)]
    others = [i for i, score in enumerate(scores) if math.isnan(score)]
    wanted = [*sorted(numbers, key=lambda i: (-scores[i], i)), *others]
    assert best_first(np.array(scores, dtype=np.float32), top).tolist() == wanted[:top]
