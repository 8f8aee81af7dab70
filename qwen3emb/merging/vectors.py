"""Weights as flat vectors, read a chunk at a time in float64, from memory or from a file, and rounded once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["InFile", "InMemory", "Vector", "chunks", "raw_bytes", "round_once"]

# Float64 elements of all buffers of a chunk together, 8 MB, and of one of them. Measured: with chunks an eighth as long
# two threads, which need Python's lock between two operations, were no faster than one; twice as long ones were slower.
_BUFFERED = 1 << 20
_LONGEST = 1 << 18
_MIDDLE = -(1 << 31)  # an int32 whose lower half was 0x8000, moved up


class Vector(Protocol):
    """A flat tensor that is read in slices."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """(stop - start,) elements `start` to `stop - 1`; valid until the next call."""
        ...


class InMemory:
    """A tensor in memory, flattened."""

    def __init__(self, tensor: Tensor) -> None:
        """Take a tensor of any shape."""
        self._flat = tensor.detach().reshape(-1)
        self.numel = self._flat.numel()
        self.dtype = tensor.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """See `Vector`."""
        return self._flat[start:stop]


@dataclass
class InFile:
    """Elements in an open file, little-endian, one after the other.

    Attributes:
        file: descriptor, open for reading.
        offset: byte at which they begin.
        numel, dtype: see `Vector`.
    """

    file: int
    offset: int
    numel: int
    dtype: torch.dtype
    _buffer: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def read(self, start: int, stop: int) -> Tensor:
        """See `Vector`.

        Raises:
            OSError: the file is shorter.
        """
        if self._buffer.numel() < stop - start:
            self._buffer = torch.empty(stop - start, dtype=self.dtype)
        values = self._buffer[: stop - start]
        into, begin = raw_bytes(values), self.offset + start * self.dtype.itemsize
        done = 0
        while done < len(into):
            count = os.preadv(self.file, [into[done:]], begin + done)
            if count == 0:
                raise OSError(f"the file ends at byte {begin + done}, in the middle of a tensor")
            done += count
        return values


def raw_bytes(flat: Tensor) -> memoryview:
    """The memory of a contiguous tensor with one dimension."""
    return flat.view(torch.uint8).numpy().data


def chunks(vectors: Sequence[Vector], base: Vector | None) -> Iterator[tuple[int, list[Tensor], Tensor | None]]:
    """Read vectors of one length chunk by chunk.

    Yields:
        (number of the first element; for each vector a float64 row, less the base where there is one; the base's row
        or None). Rows are valid until the next chunk.
    """
    numel = vectors[0].numel
    size = max(1, min(_LONGEST, numel, _BUFFERED // (len(vectors) + 2)))
    buffers = torch.empty(len(vectors) + 1, size, dtype=torch.float64)
    for start in range(0, numel, size):
        stop = min(start + size, numel)
        *rows, spare = (buffer[: stop - start] for buffer in buffers)
        origin = None if base is None else spare.copy_(base.read(start, stop))
        for row, vector in zip(rows, vectors, strict=True):
            row.copy_(vector.read(start, stop))
            if origin is not None:
                row -= origin
        yield start, rows, origin


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to dtype, to nearest even, once.

    torch goes from float64 to bfloat16 and float16 through float32 and so rounds twice. That is wrong
    only where float32 made a value the middle of two numbers; a bfloat16 is the upper half of a float32,
    so its middles are known by the lower half.
    """
    single = values.to(torch.float32)
    if dtype == torch.bfloat16:
        lower = single.view(torch.int32) << 16
        if lower.numel() and lower.amin().item() == _MIDDLE:
            places = (lower == _MIDDLE).nonzero()[:, 0]
            single[places] = _round_to_odd(values[places], single[places])
    elif dtype == torch.float16:
        single = _round_to_odd(values, single)
    elif dtype != torch.float32:
        return values.to(dtype)
    return single.to(dtype)


def _round_to_odd(values: Tensor, single: Tensor) -> Tensor:
    """float64 `values`, of which `single` is the nearest float32, as float32 that the next rounding rounds as it ought.

    Truncate, and set the last bit where anything was lost: no such number is a middle that was not one before.
    """
    back = single.to(torch.float64)
    bits = single.view(torch.int32) - (back.abs() > values.abs()).to(torch.int32)
    bits |= (back != values).to(torch.int32)
    return bits.view(torch.float32)
