"""The files of a merged model: their layout follows from the headers, so that pieces of them can be merged in parallel.

A piece is some tensors of one file with their places in it. Whoever merges a piece reads these tensors of every
checkpoint, one after the other, and writes each to its place: memory is a few tensors, whatever the size of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3emb.errors import UserError
from qwen3emb.merge.slerp import SlerpReport, linear_mean, spherical_mean
from qwen3emb.merge.stored_weights import BYTES, FLOATS, INDEX, ONE_FILE, Entries, Entry

__all__ = ["PIECE_BYTES", "Part", "Piece", "lay_out", "merge_piece"]

PIECE_BYTES = 256_000_000
"""A piece ends with the tensor that reaches this size."""


@dataclass(frozen=True)
class Part:
    """One tensor to merge: where it is in each checkpoint and in the base, and where it goes in the file."""

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
    """Write the headers of a folder's files, of at most `limit` bytes each, and their index; what is left to write.

    Args:
        entries: of each checkpoint, by name.
        base: of the base, by the checkpoints' names.
        target: folder of the output.
        limit: bytes at which a new file starts.
        weights: of the checkpoints.
        linear: the weighted sum in place of the spherical mean.
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
    """Merge the tensors of a piece and write each to its place; a row for each."""
    rows: list[SlerpReport] = []
    with piece.file.open("r+b") as out:
        for part in piece.parts:
            merged, row = _merge_tensor(part, piece)
            rows.append(row)
            out.seek(part.offset)
            out.write(_raw(merged).numpy().data)
        out.flush()
        os.fsync(out.fileno())
    return rows


def _groups(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Consecutive parts of some `PIECE_BYTES` together."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(one.entries[0].nbytes for one in group) >= PIECE_BYTES:
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


def _merge_tensor(part: Part, piece: Piece) -> tuple[Tensor, SlerpReport]:
    """Return the tensor to write and its row."""
    entries, first = part.entries, part.entries[0]
    tensors = [entry.read() for entry in entries]
    if len(tensors) > 1 and first.dtype in FLOATS:
        mean = linear_mean if piece.linear else spherical_mean
        return mean(tensors, piece.weights, base=None if part.base is None else part.base.read(), name=first.name)
    for entry, tensor in zip(entries, tensors, strict=True):
        if not torch.equal(_raw(tensor), _raw(tensors[0])):
            where = f"differs between {first.file} and {entry.file}"
            raise UserError(f"Tensor {first.name!r} ({first.dtype}) {where}; only floats are merged.")
    reason = "one checkpoint" if first.dtype in FLOATS else "not a float tensor"
    return tensors[0], SlerpReport(first.name, "copy", reason, None, (1.0,), 0.0, tensors[0].numel())


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
