"""Nearest neighbours in blocks against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.encoding.nearest import NONE, top_k
from qwen3emb.metrics.order import best_first

# Multiples of 1/4 in few dimensions: products are exact in float32, and equal scores are common.
vectors = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda v: [x / 4 for x in v])


@settings(deadline=None)
@given(
    st.lists(vectors, max_size=7),
    st.lists(vectors, max_size=23),
    st.integers(1, 30),
    st.integers(1, 9),
    st.data(),
)
def test_blocked_top_k_is_the_full_sort(queries, corpus, k, corpus_block, data) -> None:
    rows = st.lists(st.integers(0, max(0, len(corpus) - 1)), max_size=4 if corpus else 0)
    excluded = [data.draw(rows) for _ in queries]
    q, c = (np.array(v, dtype=np.float32).reshape(-1, 3) for v in (queries, corpus))
    found, scores = top_k(q, c, k, excluded, corpus_block=corpus_block)
    assert found.shape == scores.shape == (len(queries), k) and scores.dtype == np.float32
    for i, barred in enumerate(excluded):
        full = {r: float(q[i] @ c[r]) for r in range(len(corpus)) if r not in barred}
        want = sorted(full, key=lambda r: (-full[r], r))[:k]
        missing = k - len(want)
        assert found[i].tolist() == want + [NONE] * missing
        assert scores[i].tolist() == [full[r] for r in want] + [-np.inf] * missing


def test_top_k_of_real_numbers_is_that_of_the_matrix_product() -> None:
    rng = np.random.default_rng(0)
    q, c = (rng.standard_normal((n, 16)).astype(np.float32) for n in (99, 3000))
    found, scores = top_k(q, c, 20, corpus_block=700)
    product = q @ c.T
    np.testing.assert_allclose(-np.sort(-product, axis=1)[:, :20], scores, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(product, found, axis=1), scores, atol=1e-5)


def test_vectors_with_nan_are_no_neighbours() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        top_k(np.full((1, 2), np.nan, dtype=np.float32), np.ones((3, 2), dtype=np.float32), 1)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(1, 60), st.integers(1, 9))
def test_the_nearest_vectors_are_in_the_same_order(scores: list[int], top: int, block: int) -> None:
    column = np.array(scores, dtype=np.float32)[:, None]
    rows, _ = top_k(np.ones((1, 1), dtype=np.float32), column, min(top, len(scores)), corpus_block=block)
    assert rows[0].tolist() == best_first(column[:, 0], top).tolist()
