"""A cache of vectors by text on storage: a repeated or interrupted evaluation embeds no text twice."""

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
    """The vectors of one model, in a folder with one subfolder for each prompt.

    A subfolder holds `.npz` files with the hashes of texts and their vectors, written as the vectors are computed.
    """

    def __init__(self, folder: Storage) -> None:
        """A cache in `folder`, which must belong to one model; files are read when a prompt is first used."""
        self._folder = folder
        self._places: dict[str, dict[bytes, tuple[int, int]]] = {}
        self._pieces: dict[str, list[np.ndarray]] = {}

    def encode(self, texts: Sequence[str], prompt: str, embed: _Embed) -> np.ndarray:
        """(len(texts), dimensions) float32: stored vectors, and new ones from `embed`, which are then stored.

        Args:
            texts: not empty.
            prompt: everything besides the text that the vector depends on, e.g. the instruction.
            embed: computes (n, dimensions) float32 of n texts.
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
