"""Vectors of many texts on storage, written once by the encoding workers and read in pieces by the search.

A folder of `.npy` pieces named by their first row. Every worker writes the vectors that it computes, so that no process
holds all of them; pieces that a killed run has written are not embedded again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import Progress
from qwen3emb.encoding.pool import Encoders, instruction_of_rows
from qwen3emb.text.identity import exact_hash

__all__ = ["Vectors", "write_vectors"]

_ROWS = 2048
_LEAST = 64
_SHARES = 32
_LAYOUT = "layout.json"


@dataclass(frozen=True)
class Vectors:
    """`count` float32 vectors in a folder, in pieces of `piece` rows.

    Attributes:
        uri: of the folder.
        count: number of vectors.
        piece: rows of each piece but the last.
        texts: hash of the texts with their instruction and length limit.
    """

    uri: str
    count: int
    piece: int
    texts: str

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows; memory is the result and one piece.

        Args:
            rows: ascending row numbers, at least one.

        Returns:
            (len(rows), dimensions) float32.
        """
        folder, out, at = Storage(self.uri), np.empty((0, 0), dtype=np.float32), 0
        for part in np.split(rows, np.flatnonzero(np.diff(rows // self.piece)) + 1):
            start = int(part[0]) // self.piece * self.piece
            vectors = _loaded(folder, _name(start))
            if not out.size:
                out = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
            np.take(vectors, part - start, axis=0, out=out[at : at + len(part)])
            at += len(part)
        return out


def write_vectors(
    pool: Encoders,
    folder: Storage,
    texts: Sequence[str],
    *,
    max_tokens: int,
    instruction: str | Sequence[str | None] | None = None,
    progress: Progress | None = None,
) -> Vectors:
    """Embed texts on a pool's workers and write the vectors into `folder`.

    Pieces of the same texts that `folder` already holds are kept; vectors of other texts are deleted first. The other
    arguments and the errors are those of `Encoders.encode`.
    """
    instruction = instruction_of_rows(instruction, range(len(texts)))
    digest = hashlib.sha256(repr((instruction, max_tokens)).encode())
    for text in texts:
        digest.update(exact_hash(text))
    piece = max(_LEAST, min(_ROWS, -(-len(texts) // _SHARES)))
    written = Vectors(folder.uri, len(texts), piece, digest.hexdigest())
    if not (folder.exists(_LAYOUT) and folder.read_json(_LAYOUT) == asdict(written)):
        folder.delete()
        folder.write_json(_LAYOUT, asdict(written))
    done = set(folder.names(suffix=".npy"))
    missing = [row for row in range(0, len(texts), piece) if _name(row) not in done]
    tasks = []
    for row in missing:
        part = texts[row : row + piece]
        piece_instruction = instruction_of_rows(instruction, range(row, row + len(part)))
        tasks.append((folder.uri, _name(row), part, piece_instruction, max_tokens))
    finished = len(texts) - sum(len(task[2]) for task in tasks)
    for rows in pool.write(tasks):
        finished += rows
        if progress:
            progress(finished, len(texts))
    return written


def _name(row: int) -> str:
    return f"{row:010d}.npy"


def _loaded(folder: Storage, name: str) -> np.ndarray:
    """The vectors of a piece, memory-mapped where the folder is local."""
    if folder.is_local:
        return np.asarray(np.load(folder.path(name), mmap_mode="r"))
    return np.asarray(np.load(io.BytesIO(folder.read_bytes(name))))
