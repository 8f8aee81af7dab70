"""The files of a merged model: their layout follows from the headers, so that pieces of them can be merged in parallel.

A piece is some tensors of one output file with their offsets in it. Merging a piece reads these tensors of every
checkpoint chunk by chunk and writes each to its offset: memory is a few chunks, whatever the size of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3emb.core.errors import UserError
from qwen3emb.merging.slerp import SlerpReport, merge_vectors
from qwen3emb.merging.stored_weights import BYTES, FLOATS, INDEX, ONE_FILE, Entries, Entry
from qwen3emb.merging.vectors import InFile, raw_bytes

__all__ = ["PIECE_BYTES", "Part", "Piece", "lay_out", "merge_piece"]

PIECE_BYTES = 256_000_000
"""A piece ends with the tensor that reaches this size."""
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COPIED = 1 << 20  # elements that are copied at a time


@dataclass(frozen=True)
class Part:
    """One tensor to merge: its entry in each checkpoint and in the base, and its byte offset in the output file."""

    entries: tuple[Entry, ...]
    base: Entry | None
    offset: int


@dataclass(frozen=True)
class Piece:
    """Tensors of one file of the output, and how they are merged (see `checkpoint.merge_checkpoints`)."""

    file: Path
    parts: tuple[Part, ...]
    weights: tuple[float, ...]
    linear: bool


def lay_out(
    entries: Sequence[Entries], base: Entries | None, target: Path, limit: int, weights: Sequence[float], linear: bool
) -> list[Piece]:
    """Write the headers of a folder's files, and their index where there are several.

    Args:
        entries: of each checkpoint, name -> tensor.
        base: the base's tensors by the checkpoints' names; None without a base.
        target: folder of the output.
        limit: bytes of tensors in a file, at most, unless one tensor is larger.
        weights: of the checkpoints.
        linear: the weighted sum in place of the spherical mean.

    Returns:
        The pieces whose tensors are still to be merged into these files (`merge_piece`).
    """
    first = entries[0]
    shards = _plan_shards(first, limit)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = [ONE_FILE] if len(shards) == 1 else files
    target.mkdir(parents=True, exist_ok=True)
    pieces: list[Piece] = []
    for file, names in zip(files, shards, strict=True):
        header = _header({name: first[name] for name in names})
        (target / file).write_bytes(header)
        offset, parts = len(header), []
        for name in names:
            parts.append(Part(tuple(part[name] for part in entries), (base or {}).get(name), offset))
            offset += first[name].nbytes
        pieces += [Piece(target / file, group, tuple(weights), linear) for group in _groups(parts)]
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(e.nbytes for e in first.values())}, "weight_map": weight_map}
        (target / INDEX).write_text(json.dumps(index, indent=2))
    return pieces


def merge_piece(piece: Piece) -> list[SlerpReport]:
    """Merge the tensors of a piece, write each to its offset, and return a report of each.

    Raises:
        UserError: NaN or infinity, or a tensor of integers that differs.
        OSError: the disk is full, or a file changed under us.
    """
    with ExitStack() as opened:
        files: dict[Path, int] = {}
        for entry in (e for part in piece.parts for e in (*part.entries, part.base) if e is not None):
            if entry.file not in files:
                files[entry.file] = opened.enter_context(entry.file.open("rb")).fileno()
        out = opened.enter_context(piece.file.open("r+b"))
        rows = [_merge_tensor(part, piece, files, out.fileno()) for part in piece.parts]
        os.fsync(out.fileno())
    return rows


def _groups(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Consecutive parts in groups; a group ends with the part with which it reaches `PIECE_BYTES`."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(member.entries[0].nbytes for member in group) >= PIECE_BYTES:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _plan_shards(entries: Entries, limit: int) -> list[list[str]]:
    """Names per shard; wide dtypes first, so that every tensor is aligned to its element size."""
    shards: list[list[str]] = [[]]
    used = 0
    for name in sorted(entries, key=lambda name: (-BYTES[entries[name].dtype], name)):
        if shards[-1] and used + entries[name].nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += entries[name].nbytes
    return shards


def _header(entries: Entries) -> bytes:
    """The safetensors header: its length in 8 bytes, then JSON padded with spaces to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        span = [offset, offset := offset + entry.nbytes]
        table[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": span}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _merge_tensor(part: Part, piece: Piece, files: dict[Path, int], out: int) -> SlerpReport:
    """Merge one tensor into the open file `out` and return its report."""
    first = part.entries[0]
    vectors = [_vector(entry, files) for entry in part.entries]

    def write(start: int, values: Tensor) -> None:
        _write(out, part.offset + start * values.element_size(), values)

    if len(vectors) > 1 and first.dtype in FLOATS:
        base = None if part.base is None else _vector(part.base, files)
        return merge_vectors(vectors, piece.weights, write, base=base, name=first.name, linear=piece.linear)
    for start in range(0, vectors[0].numel, _COPIED):
        stop = min(start + _COPIED, vectors[0].numel)
        values = vectors[0].read(start, stop)
        for entry, vector in zip(part.entries[1:], vectors[1:], strict=True):
            if not torch.equal(vector.read(start, stop), values):
                where = f"differs between {first.file} and {entry.file}"
                raise UserError(f"Tensor {first.name!r} ({first.dtype}) {where}; only floats are merged.")
        write(start, values)
    reason = "one checkpoint" if first.dtype in FLOATS else "not a float tensor"
    return SlerpReport(first.name, "copy", reason, None, (1.0,), 0.0, first.numel)


def _vector(entry: Entry, files: dict[Path, int]) -> InFile:
    """The entry's elements; those of dtypes that are not merged, as bytes."""
    numel, dtype = (entry.numel, _FLOATS[entry.dtype]) if entry.dtype in FLOATS else (entry.nbytes, torch.uint8)
    return InFile(files[entry.file], entry.offset, numel, dtype)


def _write(out: int, place: int, values: Tensor) -> None:
    """Write all of the values at byte `place` of the file."""
    left = raw_bytes(values)
    while left:
        done = os.pwrite(out, left, place)
        left, place = left[done:], place + done
