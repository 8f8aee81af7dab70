"""Vectors in responses, against plain loops."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from serve.outputs import calibration_body, check_output, encoded, typed
from serve.schema import ApiError, EmbeddingRequest

VECTORS = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
RANGES = np.stack([np.full(12, -1.0), np.linspace(0.5, 2, 12)]).astype(np.float32)


def test_floats_and_base64_are_the_same_vectors() -> None:
    for vector in typed(VECTORS, "float", None):
        assert np.array_equal(np.float32(encoded(vector, "float")), vector)
        assert np.array_equal(np.frombuffer(base64.b64decode(str(encoded(vector, "base64"))), dtype="<f4"), vector)


def test_int8_is_the_step_of_the_range_that_a_value_lies_in() -> None:
    found = [encoded(vector, "float") for vector in typed(VECTORS, "int8", RANGES)]
    for vector, codes in zip(VECTORS, found, strict=True):
        for value, low, high, code in zip(vector, *RANGES, codes, strict=True):
            assert isinstance(code, int)
            place = (value - low) / (high - low)
            assert code == min(255, max(0, int(np.floor(place * 255)))) - 128
    assert {-128, 127} <= {code for codes in found for code in codes}, "values outside of the range are in the test"
    raw = base64.b64decode(str(encoded(typed(VECTORS, "int8", RANGES)[0], "base64")))
    assert np.frombuffer(raw, dtype=np.int8).tolist() == found[0]


def test_bits_are_packed_from_the_highest_and_binary_is_them_minus_128() -> None:
    unsigned, signed = typed(VECTORS, "ubinary", None), typed(VECTORS, "binary", None)
    for vector, whole, shifted in zip(VECTORS, unsigned.tolist(), signed.tolist(), strict=True):
        text = "".join("1" if value > 0 else "0" for value in vector).ljust(16, "0")
        assert whole == [int(text[:8], 2), int(text[8:], 2)]
        assert shifted == [byte - 128 for byte in whole]


def test_int8_needs_the_calibration_of_as_many_dimensions() -> None:
    whole, short = (EmbeddingRequest(input="a", output_dtype="int8", dimensions=n) for n in (None, 8))
    check_output(whole, 12, RANGES)
    check_output(short, 12, RANGES[:, :8])
    check_output(EmbeddingRequest(input="a", output_dtype="binary"), 12, None)
    for request, ranges, param in ((whole, None, "output_dtype"), (short, RANGES, "dimensions")):
        with pytest.raises(ApiError) as caught:
            check_output(request, 12, ranges)
        assert (caught.value.status, caught.value.body()["error"]["param"]) == (400, param)


def test_the_calibration_tells_the_range_of_each_dimension() -> None:
    body = calibration_body(RANGES)
    assert (body["dimensions"], body["low"]) == (12, [-1.0] * 12)
    np.testing.assert_array_equal(np.float32(body["high"]), RANGES[1])
    with pytest.raises(ApiError) as caught:
        calibration_body(None)
    assert caught.value.status == 404
