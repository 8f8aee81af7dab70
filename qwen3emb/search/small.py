"""An index of small vectors: what lies in memory, and what stays on disk.

Beside the shards lie `codes/`, the int8 or binary vectors, which are read into memory; `rows/`, ids, titles and texts
as Arrow files; and with rescoring `full/`, the vectors as float16. Those two are mapped, so that a search reads the
pages of its hits only; where the storage is remote they are copied to a local disk first. `calibration.npy` has the
range of each dimension and is there for every kind of index.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.quantised import DISK, Kind, SmallVectors, calibrated, rescored, vector_bytes

__all__ = ["Nearest", "column_vectors", "open_small", "read_calibration", "write_calibration", "write_small"]

Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries (Q, D), top) -> row numbers and scores, (Q, min(top, documents)), best first."""

_CODES, _ROWS, _FULL, _CALIBRATION = "codes", "rows", "full", "calibration.npy"
_COLUMNS = ("id", "title", "text")
_PIECE = 65_536
_SAMPLE = 100_000


def column_vectors(table: pa.Table, dimension: int) -> np.ndarray:
    """(rows, dimension) float32 of the column `vector`."""
    pieces = [chunk.flatten().to_numpy() for chunk in table.column("vector").chunks]
    flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.float32)
    return flat.reshape(-1, dimension)


def write_calibration(folder: Storage, shards: str, dimension: int) -> np.ndarray:
    """Write the range of each dimension, (2, dimension) float32, and return it.

    Of a large index it is that of the first 100,000 vectors, which are an arbitrary sample, since shards are named by a
    hash.
    """
    ranges, seen = np.empty((0, dimension), dtype=np.float32), 0
    for name in folder.names(shards, ".parquet"):
        vectors = column_vectors(folder.read_table(name), dimension)
        ranges, seen = calibrated(np.concatenate([ranges, vectors])), seen + len(vectors)
        if seen >= _SAMPLE:
            break
    _save(folder, _CALIBRATION, ranges)
    return ranges


def read_calibration(folder: Storage) -> np.ndarray | None:
    """What `write_calibration` wrote; None in an index that an earlier version made."""
    return np.asarray(_load(folder, _CALIBRATION)) if folder.exists(_CALIBRATION) else None


def write_small(folder: Storage, shards: str, kind: Kind, dimension: int, rescore: bool) -> None:
    """Write `codes/`, `rows/` and, to rescore with, `full/` of the shards' documents; memory is one piece."""
    for name in (_CODES, _ROWS, _FULL):
        folder.delete(name)
    small, start = SmallVectors(kind, dimension, read_calibration(folder)), 0
    for table in _pieces(folder, shards):
        vectors, piece = column_vectors(table, dimension), f"{start:010d}"
        _save(folder, f"{_CODES}/{piece}.npy", small.codes(vectors))
        if rescore:
            _save(folder, f"{_FULL}/{piece}.npy", vectors.astype(DISK))
        sink, rows = pa.BufferOutputStream(), table.select(_COLUMNS)
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        folder.write_bytes(f"{_ROWS}/{piece}.arrow", sink.getvalue().to_pybytes())
        start += len(table)


def open_small(folder: Storage, kind: Kind, dimension: int, count: int, rescore: int) -> tuple[pa.Table, Nearest]:
    """What `write_small` wrote: the mapped rows of all documents, and the search in their codes.

    Args:
        folder: of the index.
        kind, dimension: of the vectors.
        count: documents.
        rescore: so many times `top` hits are rescored; 0 = none.

    Raises:
        UserError: the files hold fewer or more documents.
    """
    small = SmallVectors(kind, dimension, read_calibration(folder))
    codes, start = np.empty((count, vector_bytes(kind, dimension)), dtype=np.uint8), 0
    for name in folder.names(_CODES, ".npy"):
        piece = _load(folder, name)
        if start + len(piece) <= count:
            codes[start : start + len(piece)] = piece
        start += len(piece)
    mapped = [pa.ipc.open_file(pa.memory_map(path)).read_all() for path in _files(folder, _ROWS, ".arrow")]
    rows = pa.concat_tables(mapped) if mapped else pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})
    full = [np.load(path, mmap_mode="r") for path in _files(folder, _FULL, ".npy")] if rescore else []
    held = {_CODES: start, _ROWS: len(rows)} | ({_FULL: sum(map(len, full))} if rescore else {})
    wrong = next((name for name, found in held.items() if found != count), None)
    if wrong:
        raise UserError(
            f"{folder.uri}: index.json promises {count} vectors, {wrong}/ holds {held[wrong]}; "
            "run the stage `index` again with --replace"
        )
    small.add(codes)  # all at once: faiss doubles its memory when it grows
    if not rescore:
        return rows, small.search

    def read(chosen: np.ndarray) -> np.ndarray:
        parts = np.split(chosen, np.flatnonzero(np.diff(chosen // _PIECE)) + 1)
        return np.concatenate([full[part[0] // _PIECE][part % _PIECE] for part in parts])

    def search(queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        return rescored(queries, small.search(queries, top * rescore)[0], read, top)

    return rows, search


def _files(folder: Storage, name: str, suffix: str) -> list[str]:
    """Local paths of the files below a folder, which is copied here where it is remote."""
    return [str(path) for path in sorted(folder.local(name).glob(f"*{suffix}"))] if folder.exists(name) else []


def _pieces(folder: Storage, shards: str) -> Iterator[pa.Table]:
    """The shards' rows in name order, `_PIECE` at a time."""
    waiting = pa.table({})
    for name in folder.names(shards, ".parquet"):
        table = folder.read_table(name)
        waiting = pa.concat_tables([waiting, table]) if len(waiting) else table
        while len(waiting) >= _PIECE:
            yield waiting.slice(0, _PIECE)
            waiting = waiting.slice(_PIECE)
    if len(waiting):
        yield waiting


def _save(folder: Storage, name: str, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    folder.write_bytes(name, buffer.getvalue())


def _load(folder: Storage, name: str) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(folder.read_bytes(name))))
