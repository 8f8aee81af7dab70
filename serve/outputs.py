"""Vectors as a response has them: float32, int8 or bits. Imports no ray."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from qwen3emb.encoding.quantised import bits, int8_codes
from serve.schema import ApiError, EmbeddingRequest, bad_request

__all__ = ["calibration_body", "check_output", "encoded", "typed"]

_NO_RANGES = "int8 needs the calibration of an index, which this server's has not; run the stage `index` again"


def check_output(request: EmbeddingRequest, dimensions: int, ranges: np.ndarray | None) -> None:
    """Refuse what `typed` cannot give, before anything is computed.

    Args:
        request: of a client.
        dimensions: length of the model's vectors.
        ranges: (2, D) of the index's calibration, None without one.

    Raises:
        ApiError: 400 for int8 without a calibration, or of another length than the calibration's.
    """
    if request.output_dtype != "int8":
        return
    if ranges is None:
        raise bad_request(_NO_RANGES, "output_dtype")
    if (request.dimensions or dimensions) != ranges.shape[1]:
        message = f"int8 is calibrated on the index, whose vectors have {ranges.shape[1]} dimensions; ask for as many"
        raise bad_request(message, "dimensions")


def typed(vectors: np.ndarray, output_dtype: str, ranges: np.ndarray | None) -> np.ndarray:
    """(n, D) float32 vectors as the request's `output_dtype`; `ranges` as in `check_output`, which was called.

    `ubinary` is a bit for each value, whether it is above zero, eight to a byte; `binary` the same bytes minus 128.
    """
    if output_dtype == "int8":
        assert ranges is not None, "check_output refuses this"
        return int8_codes(vectors, ranges)
    if output_dtype == "float":
        return vectors
    packed = bits(vectors)
    return packed if output_dtype == "ubinary" else (packed ^ np.uint8(0x80)).view(np.int8)


def encoded(vector: np.ndarray, encoding_format: str) -> str | list[float] | list[int]:
    """A vector of `typed` as a list of numbers, or its bytes in base64, float32 little-endian."""
    if encoding_format == "base64":
        plain = vector.astype("<f4") if vector.dtype == np.float32 else vector
        return base64.b64encode(plain.tobytes()).decode("ascii")
    numbers: list[float] | list[int] = vector.tolist()
    return numbers


def calibration_body(ranges: np.ndarray | None) -> dict[str, Any]:
    """The body of `/v1/calibration`.

    Raises:
        ApiError: 404 without a calibration.
    """
    if ranges is None:
        raise ApiError(404, _NO_RANGES)
    return {"dimensions": ranges.shape[1], "low": ranges[0].tolist(), "high": ranges[1].tolist()}
