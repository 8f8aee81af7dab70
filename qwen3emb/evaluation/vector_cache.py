"""Vectors that were computed before, by text: an evaluation that was killed, or a second one, embeds nothing twice."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from qwen3emb.core.storage import Storage
from qwen3emb.text.identity import exact_hash

__all__ = ["VectorCache"]

_AT_ONCE = 4096
_BYTES = 16
_Embed = Callable[[list[str]], np.ndarray]


class VectorCache:
    """A folder of vectors of one model; each prompt has a folder of its own below.

    A prompt's folder holds pieces, `.npz` with the hashes of the texts and their vectors, written as they are made.
    """

    def __init__(self, folder: Storage) -> None:
        """Vectors of the model that the folder is named after; nothing is read yet."""
        self._folder = folder
        self._places: dict[str, dict[bytes, tuple[int, int]]] = {}
        self._pieces: dict[str, list[np.ndarray]] = {}

    def encode(self, texts: Sequence[str], prompt: str, embed: _Embed) -> np.ndarray:
        """(len(texts), dimensions) float32: known vectors, and those of texts that are new from `embed`.

        Args:
            texts: not empty.
            prompt: whatever besides the text decides the vector.
            embed: gives (n, dimensions) float32 for n texts.
        """
        name = exact_hash(prompt).hex()
        if name not in self._places:
            self._read(name)
        places, pieces = self._places[name], self._pieces[name]
        keys = [exact_hash(text) for text in texts]
        new = list({key: text for key, text in zip(keys, texts, strict=True) if key not in places}.items())
        for start in range(0, len(new), _AT_ONCE):
            part = new[start : start + _AT_ONCE]
            vectors = np.asarray(embed([text for _, text in part]), dtype=np.float32)
            self._write(name, [key for key, _ in part], vectors)
        out = np.empty((len(texts), pieces[0].shape[1]), dtype=np.float32)
        for row, key in enumerate(keys):
            piece, place = places[key]
            out[row] = pieces[piece][place]
        return out

    def _read(self, name: str) -> None:
        self._places[name], self._pieces[name] = {}, []
        for file in self._folder.names(name, ".npz"):
            with np.load(io.BytesIO(self._folder.read_bytes(file))) as content:
                self._add(name, [bytes(row) for row in content["hashes"]], content["vectors"])

    def _add(self, name: str, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        piece = len(self._pieces[name])
        self._pieces[name].append(vectors)
        self._places[name].update((key, (piece, place)) for place, key in enumerate(keys))

    def _write(self, name: str, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        buffer = io.BytesIO()
        hashes = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _BYTES)
        np.savez(buffer, hashes=hashes, vectors=vectors)
        piece = blake2b(b"".join(keys), digest_size=_BYTES).hexdigest()  # the same texts give the same file again
        self._folder.write_bytes(f"{name}/{piece}.npz", buffer.getvalue())
        self._add(name, keys, vectors)
