"""Chunks of vectors in memory and in files against the whole tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen3emb.merging.slerp import merge_vectors
from qwen3emb.merging.vectors import InFile, InMemory, chunks, raw_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_chunks_of_a_file_are_those_of_the_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    one, two, base = (torch.randn(300_001).to(dtype) for _ in range(3))
    path = tmp_path / "numbers"
    path.write_bytes(b"head" + bytes(raw_bytes(one)) + bytes(raw_bytes(two)))
    with path.open("rb") as opened:
        places = (4, 4 + one.numel() * dtype.itemsize)
        stored = [InFile(opened.fileno(), place, one.numel(), dtype) for place in places]
        found = [(start, *(row.clone() for row in rows)) for start, rows, _ in chunks(stored, InMemory(base))]
    assert [start for start, *_ in found] == sorted(start for start, *_ in found) and len(found) > 1
    for k, tensor in enumerate((one, two)):
        assert torch.equal(torch.cat([rows[k] for _, *rows in found]), tensor.double() - base.double())


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(10))
    with path.open("rb") as opened, pytest.raises(OSError, match="ends at byte 10"):
        InFile(opened.fileno(), 4, 4, torch.float32).read(0, 4)


def test_every_middle_among_many_values_is_rounded_by_what_float32_lost() -> None:
    # just under, at and just over the middle of two bfloat16 numbers; float32 makes the middle of all three
    low, high = torch.ones(90_000).bfloat16(), torch.ones(90_000).bfloat16()
    high[::997] = 1.0 + 2**-7
    for share, wanted in ((0.5 - 2**-33, 1.0), (0.5, 1.0), (0.5 + 2**-33, 1.0 + 2**-7)):
        merged = torch.empty_like(low)

        def keep(start: int, values: torch.Tensor, merged: torch.Tensor = merged) -> None:
            merged[start : start + len(values)] = values

        merge_vectors([InMemory(low), InMemory(high)], [1 - share, share], keep, base=None, name="", linear=True)
        assert merged[::997].unique().tolist() == [wanted]
        assert merged[1:997].unique().tolist() == [1.0]
