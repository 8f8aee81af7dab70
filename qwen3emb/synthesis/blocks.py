"""Passages in blocks of fixed size: what one engine call is given, one file holds, and a resumed run skips.

The split depends on the passages and the configuration only, and a block's name holds a digest of its ids: a
block whose file exists is done, whatever run wrote it, and files of another split are recognised as foreign.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3emb.core.records import PASSAGE
from qwen3emb.core.rejects import text_problem
from qwen3emb.core.storage import Storage
from qwen3emb.text.passages import id_hashes, in_split, passage_files, read_ids

__all__ = ["Block", "BlockPlan", "Segment", "plan_blocks", "read_block"]


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of the selected rows of one Parquet file."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """Passages that are written together."""

    name: str
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Passages in the block."""
        return sum(s.stop - s.start for s in self.segments)


@dataclass(frozen=True)
class BlockPlan:
    """The passages of a run.

    Attributes:
        blocks: all of them, in the order of the files.
        seed: of the hash that chooses passages.
        limit: passages whose hash is above this are left out.
        repeated: file -> rows whose id has appeared before.
        split: of the passages; others are left out.
    """

    blocks: tuple[Block, ...]
    seed: int
    limit: int
    repeated: Mapping[str, frozenset[int]]
    split: str = "train"

    @property
    def rows(self) -> int:
        """Passages in all blocks."""
        return sum(block.rows for block in self.blocks)


def plan_blocks(
    folder: Storage, seed: int, max_passages: int | None, rows_per_block: int, split: str = "train"
) -> BlockPlan:
    """Choose passages by a hash of (seed, id) and cut them into blocks, reading nothing but ids and splits.

    Args:
        folder: holds Parquet files with the schema `records.PASSAGE`.
        seed: another seed chooses other passages.
        max_passages: distinct ids to choose; None takes all.
        rows_per_block: rows of every block but the last.
        split: only passages of this split.
    """
    files = passage_files(folder)
    tables = [read_ids(folder, file) for file in files]
    hashes = [id_hashes(table.column("id"), seed) for table in tables]
    ours = [in_split(table, split) for table in tables]
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    _, first = np.unique(every, return_index=True)
    distinct = np.unique(every[np.concatenate([np.empty(0, np.bool_), *ours])])
    limit = int(np.iinfo(np.uint64).max)
    if max_passages is not None and max_passages < len(distinct):
        limit = int(distinct[max_passages - 1])
    new = np.zeros(len(every), bool)
    new[first] = True
    ends = np.cumsum([len(h) for h in hashes])
    repeated = {
        file: frozenset(np.flatnonzero(~new[end - len(file_hashes) : end]).tolist())
        for file, file_hashes, end in zip(files, hashes, ends, strict=True)
    }
    chosen = {
        file: file_hashes[(file_hashes <= limit) & mask]
        for file, file_hashes, mask in zip(files, hashes, ours, strict=True)
    }
    repeated = {file: rows for file, rows in repeated.items() if rows}
    return BlockPlan(tuple(_blocks(chosen, rows_per_block)), seed, limit, repeated, split)


def _blocks(chosen: Mapping[str, NDArray[np.uint64]], size: int) -> Iterator[Block]:
    """Blocks over the files' chosen hashes, each block filled before the next begins."""
    segments: list[Segment] = []
    content = b""
    room, number = size, 0
    for file, hashes in chosen.items():
        start = 0
        while start < len(hashes):
            stop = min(start + room, len(hashes))
            segments.append(Segment(file, start, stop))
            content += hashes[start:stop].tobytes()
            room -= stop - start
            start = stop
            if room == 0:
                yield _block(number, segments, content)
                segments, content, room, number = [], b"", size, number + 1
    if segments:
        yield _block(number, segments, content)


def _block(number: int, segments: Sequence[Segment], content: bytes) -> Block:
    return Block(f"part-{number:06d}-{blake2b(content, digest_size=4).hexdigest()}", tuple(segments))


def read_block(folder: Storage, plan: BlockPlan, block: Block) -> list[dict[str, Any]]:
    """The passages of a block, each with `problem`: why no query can be written for it, or None.

    Codes: duplicate_id (the first passage with the id is kept), empty_passage, and those of
    `rejects.text_problem`.
    """
    rows: list[dict[str, Any]] = []
    for segment in block.segments:
        rows.extend(_selected(folder, segment.file, plan)[segment.start : segment.stop])
    return rows


def _selected(folder: Storage, file: str, plan: BlockPlan) -> list[dict[str, Any]]:
    """The chosen rows of one file, with their problems."""
    table = folder.read_table(file)
    table = table.select([name for name in PASSAGE.names if name in table.column_names])
    rows = np.flatnonzero((id_hashes(table.column("id"), plan.seed) <= plan.limit) & in_split(table, plan.split))
    repeated = plan.repeated.get(file, frozenset())
    return [
        passage | {"problem": _problem(passage, int(row) in repeated)}
        for row, passage in zip(rows, table.take(rows).to_pylist(), strict=True)
    ]


def _problem(passage: Mapping[str, str | None], repeated: bool) -> str | None:
    if repeated:
        return "duplicate_id: an earlier passage has the same id"
    text = passage["text"]
    if not text or not text.strip():
        return "empty_passage: nothing but white space"
    return text_problem(text) or text_problem(passage["title"] or "")
