"""The identity of a model: the content of its files, or the name of a hub model that is not on this machine.

Hashing reads every byte once: gigabytes take seconds. The hash of a large file is kept in the user's cache and taken
again while the file's size, times and inode are the same. A model fetched from the hub keeps the name it had before it
was fetched; its content is noted when it is first seen, and a later change of it shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import UserError
from qwen3emb.core.location import redacted
from qwen3emb.model.fetch import cache_dir, is_endpoint, is_hub_id, resolve_model

__all__ = ["content_digest", "model_identity", "streamed_digest", "tokenizer_identity"]

_READ = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt")  # files that loading a model may read
_OF_THE_WEIGHTS = {"config.json", "generation_config.json", "model.safetensors.index.json"}
_KEPT_FROM = 1 << 20  # bytes; smaller files are hashed faster than looked up
_IN_THIS_PROCESS: dict[str, dict[str, Any]] = {}  # several stages read one model, and a cache may be read-only
_SETTLED = 2.0  # seconds: a file may change once more within the tick of its time stamp


def model_identity(name: str) -> str:
    """The identity of a model given as directory, name, hub id or address of a server.

    Returns:
        16 hexadecimal digits of its content; the name of a hub model, with the digits where its files have changed
        since they were fetched; the address of a server.

    Raises:
        UserError: there is no such model, and it is no hub id.
    """
    if is_endpoint(name):
        return str(redacted(name))
    directory = _directory(name)
    if directory is None:
        return name
    digest = content_digest(directory, sorted(_files(directory)))
    return _fetched(name, digest) if is_hub_id(name) else digest


def tokenizer_identity(name: str) -> str:
    """The identity of a model's tokenizer: its content, so that models of one family share it; of a hub id, which may
    be fetched between two runs, that of the model.

    Raises:
        UserError: there is no such model, and it is no hub id.
    """
    directory = _directory(name)
    if directory is None or is_hub_id(name):
        return model_identity(name)
    whole = directory / "tokenizer.json"
    parts = (f for f in _files(directory) if f.suffix != ".safetensors" and f.name not in _OF_THE_WEIGHTS)
    files = [whole] if whole.is_file() else list(parts)
    return content_digest(directory, sorted(files))


def content_digest(directory: Path, files: Sequence[Path]) -> str:
    """16 hexadecimal digits over the names below `directory` and the contents of `files`."""
    known = _Known(directory)
    large = [file for file in files if file.stat().st_size >= _KEPT_FROM]
    with ThreadPoolExecutor(max_workers=8) as pool:  # starts no thread for nothing
        side_by_side = dict(zip(large, pool.map(known.digest, large), strict=True))
    digests = [side_by_side.get(file) or known.digest(file) for file in files]
    known.keep()
    lines = (
        f"{file.relative_to(directory).as_posix()} {digest}\n" for file, digest in zip(files, digests, strict=True)
    )
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def streamed_digest(files: Iterable[tuple[str, Any]]) -> str:
    """16 hexadecimal digits over names and contents of (name, open binary stream), in their order.

    For files on any storage; registries and kept scores use it. It differs from `content_digest`, which caches the
    hashes of local files, in its digits for the same files.
    """
    digest = hashlib.sha256()
    for name, stream in files:
        digest.update(name.encode())
        with stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


class _Known:
    """Hashes of a directory's large files, kept in the user's cache where that can be written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        place = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:24]
        self._file = cache_dir().parent / "identity" / f"{place}.json"
        self._before: dict[str, Any] = _read_json(self._file)
        self._now: dict[str, Any] = {}

    def digest(self, file: Path) -> str:
        """The hash of a file below the directory."""
        state = file.stat()
        key, stamp = str(file), [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        kept = _IN_THIS_PROCESS.get(key) or self._before.get(key)
        if kept and kept["state"] == stamp:
            self._now[key] = kept
            return str(kept["sha256"])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if state.st_size >= _KEPT_FROM and time.time() - state.st_ctime > _SETTLED:
            self._now[key] = _IN_THIS_PROCESS[key] = {"state": stamp, "sha256": digest}
        return digest

    def keep(self) -> None:
        """Write the hashes to the cache; where it cannot be written, they are computed again next time."""
        if self._now and self._now != self._before:
            _write_json(self._file, self._before | self._now)


def _directory(name: str) -> Path | None:
    """The model's directory on this machine; None for a hub model that was not fetched."""
    try:
        return resolve_model(name)
    except UserError:
        if is_hub_id(name):
            return None
        raise


def _files(directory: Path) -> Iterator[Path]:
    """The files that loading the model may read, without hidden ones and other formats of the weights."""
    for file in directory.rglob("*"):
        parts = file.relative_to(directory).parts
        hidden = any(part.startswith(".") or part in ("onnx", "openvino") for part in parts)
        if file.suffix in _READ and not hidden and file.is_file():
            yield file


def _fetched(name: str, digest: str) -> str:
    """The name of a fetched hub model; followed by its digest where that is not the first one seen for the name."""
    note = cache_dir() / f"{name.replace('/', '--')}.content.json"
    first = _read_json(note).get("content")
    if first is None:
        _write_json(note, {"content": digest})
    return name if first in (None, digest) else f"{name}@{digest}"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):  # a cache on a read-only disk
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(file)
