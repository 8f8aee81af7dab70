"""Which pairs pass the filter, against literal loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.filtering.threshold import draw, histogram, keep, round_trip, threshold_for

BEYOND = 1 + 2**-20  # rounding takes cosines a little out of [-1, 1]
cosines = st.lists(st.floats(-BEYOND, BEYOND, width=32), max_size=60)


@given(cosines, st.sampled_from([2, 8, 40]))
def test_histogram_counts_every_pair_in_its_bin(scores: list[float], bins: int) -> None:
    found = histogram(np.array(scores, dtype=np.float32), bins)
    counts = [0] * bins
    for score in scores:
        inside = min(1.0, max(-1.0, score))
        counts[max(i for i in range(bins) if found.edges[i] <= inside)] += 1
    assert list(found.counts) == counts
    assert found.edges[0] == -1 and found.edges[-1] == 1 and len(found.edges) == bins + 1
    assert np.allclose(np.diff(found.edges), 2 / bins)


@given(cosines, st.floats(-1, 1))
def test_only_scores_above_the_threshold_are_kept(scores: list[float], threshold: float) -> None:
    kept = keep(np.array(scores, dtype=np.float32), threshold)
    assert kept.tolist() == [score > threshold for score in scores]


def test_a_score_at_the_threshold_is_dropped() -> None:
    assert keep([0.5, np.nextafter(0.5, 1)], 0.5).tolist() == [False, True]
    # float32(0.6) is above 0.6: compared in float32 the two would be equal
    assert keep(np.array([0.6], dtype=np.float32), 0.6).tolist() == [True]


def test_quantiles_are_those_of_the_scores_and_absent_without_scores() -> None:
    found = histogram(np.linspace(0, 1, 101, dtype=np.float32), 4)
    assert found.quantiles[0.5] == pytest.approx(0.5) and found.quantiles[0.9] == pytest.approx(0.9)
    assert histogram(np.empty(0, dtype=np.float32), 4).quantiles == {}


def test_histogram_as_text_marks_the_threshold_and_leaves_out_empty_ends() -> None:
    lines = histogram(np.array([0.1, 0.3, 0.3, 0.9], dtype=np.float32), 4).lines(0.6)
    assert lines == [
        f"+0.00 .. +0.50   {3:>8} " + "#" * 40,
        f"+0.50 .. +1.00 * {1:>8} " + "#" * 13,
    ]
    assert histogram(np.empty(0, dtype=np.float32), 4).lines(0.6) == ["no pairs"]


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 5))
def test_draw_takes_that_many_different_pairs(count: int, sample: int, seed: int) -> None:
    drawn = draw(count, sample, seed)
    assert len(drawn) == len(set(drawn.tolist())) == min(count, sample)
    assert sorted(drawn.tolist()) == drawn.tolist() and set(drawn.tolist()) <= set(range(count))
    assert drawn.tolist() == draw(count, sample, seed).tolist()


def test_draw_depends_on_the_seed_and_without_a_sample_takes_all() -> None:
    assert draw(1000, 10, 0).tolist() != draw(1000, 10, 1).tolist()
    assert draw(5, None, 0).tolist() == [0, 1, 2, 3, 4]


def test_a_share_to_keep_gives_its_threshold() -> None:
    scores = np.array([0.1, 0.5, 0.3, 0.9, 0.7], dtype=np.float32)
    for share, kept in ((0.4, 2), (0.5, 2), (0.2, 1), (0.1, 0), (1.0, 5)):
        assert int(keep(scores, threshold_for(scores, share)).sum()) == kept, share
    assert int(keep(np.full(4, 0.5), threshold_for(np.full(4, 0.5), 0.5)).sum()) == 0  # none is better than another


def test_a_query_has_to_find_its_own_document_among_the_nearest() -> None:
    documents = np.eye(4, dtype=np.float32)
    queries = np.array([[1, 0, 0, 0], [0.1, 0.9, 0.8, 0]], dtype=np.float32)
    of_query, of_document = np.array([0, 1, 1, 1]), np.array([0, 1, 2, 3])
    assert round_trip(queries, of_query, documents, of_document, 1).tolist() == [True, True, False, False]
    assert round_trip(queries, of_query, documents, of_document, 2).tolist() == [True, True, True, False]
    assert round_trip(queries, of_query, documents, of_document, 9).all()
