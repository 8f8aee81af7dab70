"""The passages of a corpus by split, and the draw of some of them by a hash of their ids."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qwen3emb.core.storage import Storage

__all__ = [
    "PASSAGES",
    "drawn_passages",
    "id_hashes",
    "in_split",
    "passage_files",
    "passages_as_corpus",
    "read_ids",
    "training_passages",
]

PASSAGES = "passages"
"""Folder of the passages in that of the stage `corpus`."""

_READ = ("id", "split")


def passage_files(folder: Storage) -> list[str]:
    """Names of the Parquet files below a folder of passages, in their order."""
    return folder.names("", ".parquet")


def read_ids(folder: Storage, file: str) -> pa.Table:
    """The columns `id` and, where the corpus has it, `split` of one file of passages."""
    present = [n for n in _READ if n in pq.read_schema(folder.path(file), filesystem=folder.filesystem).names]
    return pq.read_table(folder.path(file), filesystem=folder.filesystem, columns=present)


def in_split(table: pa.Table, split: str) -> NDArray[np.bool_]:
    """(rows,) which passages are of a split; all are of `train` where the corpus does not say it."""
    if "split" not in table.column_names:
        return np.full(table.num_rows, split == "train")
    mask: NDArray[np.bool_] = pc.equal(pc.fill_null(table.column("split"), "train"), split).to_numpy()
    return mask


def id_hashes(ids: pa.ChunkedArray, seed: int) -> NDArray[np.uint64]:
    """64 bits per id, of (seed, id)."""
    key = str(seed).encode()
    raw = b"".join(blake2b(str(i).encode(), digest_size=8, key=key).digest() for i in ids.to_pylist())
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)


def training_passages(corpus: Storage) -> Iterator[dict[str, Any]]:
    """Title and text of the passages of the split `train`.

    Args:
        corpus: folder of the stage `corpus`.
    """
    folder = corpus / PASSAGES
    for file in passage_files(folder):
        table = folder.read_table(file)
        yield from table.filter(pa.array(in_split(table, "train"))).select(["title", "text"]).to_pylist()


def drawn_passages(corpus: Storage, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Up to `count` passages of a split (id, title, text), those that `plan_blocks` of the synthesis draws.

    Args:
        corpus: folder of the stage `corpus`.
        split: `dev` or `heldout`.
        count: of distinct ids.
        seed: of the run.
    """
    folder = corpus / PASSAGES
    chosen: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    for file in passage_files(folder):
        ids = read_ids(folder, file)
        chosen.append(id_hashes(ids.column("id"), seed)[in_split(ids, split)])
    distinct = np.unique(np.concatenate(chosen))[:count]
    for file in passage_files(folder) if len(distinct) else []:
        table = folder.read_table(file)
        wanted = in_split(table, split) & np.isin(id_hashes(table.column("id"), seed), distinct)
        yield from table.filter(pa.array(wanted)).select(["id", "title", "text"]).to_pylist()


def passages_as_corpus(folder: Storage) -> dict[str, tuple[str, str]]:
    """Id -> (title, text) of all passages below a folder; of equal ids the first."""
    corpus: dict[str, tuple[str, str]] = {}
    for file in passage_files(folder):
        for row in folder.read_table(file).select(["id", "title", "text"]).to_pylist():
            corpus.setdefault(row["id"], (row["title"] or "", row["text"] or ""))
    return corpus
