"""Small vectors against slow numpy: every code, every score, every tie."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.encoding.quantised import (
    SmallVectors,
    bits,
    calibrated,
    int8_codes,
    rank,
    rescored,
    shortened,
    vector_bytes,
)


def unit(seed: int, count: int, dimension: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def full_sort(scores: np.ndarray, top: int) -> np.ndarray:
    """(Q, top) rows by falling score, equal ones by row."""
    rows = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.lexsort((rows, -scores), axis=1)[:, :top]


def steps(vectors: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """The step of each value, 0 to 255, in float32 as faiss counts."""
    share = (vectors - ranges[0]) / (ranges[1] - ranges[0])
    return np.floor(255 * np.clip(share, 0, 1)).astype(np.int64)


def test_calibration_is_the_least_and_greatest_of_each_dimension() -> None:
    vectors = unit(0, 9, 4)
    low, high = calibrated(vectors)
    assert low.tolist() == [min(column) for column in vectors.T.tolist()]
    assert high.tolist() == [max(column) for column in vectors.T.tolist()]


def test_int8_codes_are_steps_of_the_range_and_what_lies_outside_its_nearer_end() -> None:
    vectors = unit(1, 200, 12)
    ranges = calibrated(vectors[:20])
    codes = int8_codes(vectors, ranges)
    assert codes.dtype == np.int8
    assert np.array_equal(codes, steps(vectors, ranges) - 128)
    below, above = vectors < ranges[0], vectors > ranges[1]
    assert below.any() and above.any()
    assert (codes[below] == -128).all() and (codes[above] == 127).all()
    decoded = ranges[0] + (codes + 128.5) * (ranges[1] - ranges[0]) / 255
    inside = ~(below | above)
    assert np.abs(decoded - vectors)[inside].max() <= ((ranges[1] - ranges[0]) / 255).max() / 2 + 1e-6


def test_a_dimension_that_never_changes_has_one_code() -> None:
    vectors = unit(2, 30, 4)
    vectors[:, 2] = 0.25
    small = SmallVectors("int8", 4, calibrated(vectors))
    codes = small.codes(vectors)
    assert len(set(codes[:, 2].tolist())) == 1
    small.add(codes)
    _, scores = small.search(np.eye(4, dtype=np.float32)[2:3], 30)
    np.testing.assert_allclose(scores, 0.25)


@pytest.mark.parametrize("top", [1, 7, 250, 999])
def test_int8_search_is_the_full_sort_by_the_decoded_documents(top: int) -> None:
    documents, queries = unit(3, 250, 16), unit(4, 20, 16)
    documents[100:200] = documents[:100]  # equal scores, at the cut too
    low, high = calibrated(documents)
    decoded = low + (steps(documents, np.stack([low, high])) + 0.5) * (high - low) / 255
    exact = queries.astype(np.float64) @ decoded.astype(np.float64).T
    rows, scores = rank(queries, documents, "int8", 0, top)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert np.array_equal(rows, full_sort(exact.astype(np.float32), top))


@pytest.mark.parametrize("top", [1, 7, 250, 999])
@pytest.mark.parametrize("dimension", [16, 21])
def test_binary_search_is_the_full_sort_by_hamming_distance(
    top: int, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3emb.encoding.quantised._COUNTED", 5000)  # several blocks of queries
    documents, queries = unit(5, 250, dimension), unit(6, 20, dimension)
    distances = ((queries[:, None] > 0) != (documents[None] > 0)).sum(axis=2)
    rows, scores = rank(queries, documents, "binary", 0, top)
    assert np.array_equal(rows, full_sort(-distances, top))  # most distances are shared by many
    np.testing.assert_allclose(scores, 1 - 2 * np.take_along_axis(distances, rows, axis=1) / dimension, atol=1e-6)
    assert bits(documents).shape == (250, vector_bytes("binary", dimension))


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_rescoring_orders_so_many_first_hits_by_vectors_of_full_precision(kind: str) -> None:
    documents, queries = unit(7, 300, 24), unit(8, 15, 24)
    first, _ = rank(queries, documents, kind, 0, 20)  # type: ignore[arg-type]
    rows, scores = rank(queries, documents, kind, 4, 5)  # type: ignore[arg-type]
    disk = documents.astype(np.float16).astype(np.float32)
    for query, candidates, found, values in zip(queries, first, rows, scores, strict=True):
        exact = {int(row): float(disk[row] @ query) for row in candidates}
        assert found.tolist() == sorted(exact, key=lambda row: (-exact[row], row))[:5]
        np.testing.assert_allclose(values, [exact[int(row)] for row in found], atol=1e-6)
    assert (rows != first[:, :5]).any()


def test_rescoring_all_hits_is_the_search_with_float32() -> None:
    documents, queries = unit(9, 60, 16), unit(10, 10, 16)
    rows, _ = rank(queries, documents, "binary", 12, 5)
    assert np.array_equal(rows, rank(queries, documents, "float32", 0, 5)[0])


def test_vectors_are_read_in_ascending_order_once_each() -> None:
    documents, asked = unit(11, 9, 4), []

    def read(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return documents[rows]

    rows, _ = rescored(documents[3:4], np.array([[8, 3, 0]]), read, 2)
    assert asked == [[0, 3, 8]]
    assert rows[0, 0] == 3


def test_no_documents_no_hits() -> None:
    rows, scores = SmallVectors("binary", 8).search(unit(0, 3, 8), 5)
    assert rows.shape == scores.shape == (3, 0)


def test_shortened_vectors_are_the_leading_dimensions_of_length_one() -> None:
    vectors = unit(12, 5, 8)
    short = shortened(vectors, 3)
    for vector, kept in zip(vectors, short, strict=True):
        np.testing.assert_allclose(kept, vector[:3] / np.sqrt((vector[:3] ** 2).sum()), rtol=1e-6)
    assert shortened(vectors, 8) is vectors
    assert np.array_equal(shortened(np.zeros((1, 4), np.float32), 2), np.zeros((1, 2)))


def test_bytes_of_a_vector() -> None:
    assert [vector_bytes(kind, 384) for kind in ("float32", "int8", "binary")] == [1536, 384, 48]  # type: ignore[arg-type]
