"""The models of a run, in `models/` of its storage: the copy that every node and every later stage reads.

A model may lie in a folder of one machine, in its cache, on the hub or on other storage. The first stage that needs it
copies it to the run's storage; from then on only its URI is handed around, and each node fetches it once
(`Storage.local`).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from qwen3emb.core.location import is_uri, joined
from qwen3emb.core.storage import Storage
from qwen3emb.model.fetch import fetch_model, is_endpoint, resolve_model
from qwen3emb.model.identity import model_identity

__all__ = ["MODELS", "run_model"]

MODELS = "models"
"""Folder of the copies, below the run's storage."""

_LINKED_FROM = 1 << 20  # bytes
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx"}


def run_model(storage: str, name: str) -> str:
    """The URI of the run's copy of a model, which is made where it is missing; the address of a server as it is.

    Args:
        storage: of the run.
        name: a directory, a name of `fetch-model`, a hub id, or a URI.

    Raises:
        UserError: there is no such model, or the hub does not give it.
    """
    if is_endpoint(name):
        return name
    if is_uri(name):
        return name  # on storage already, for every node alike
    folder, models = _fetched(name), Storage(joined(storage, MODELS))
    label = f"{_label(name)}-{_digits(name)}"
    if not models.exists(f"{label}.json"):
        _copy(folder, models, label, name)
    return (models / label).uri


def _fetched(name: str) -> Path:
    """The model's folder on this machine; a hub model that is not there is fetched."""
    if name.count("/") == 1 and not Path(name).expanduser().is_dir():
        return fetch_model(name)
    return resolve_model(name)


def _label(name: str) -> str:
    return re.sub(r"[^\w.-]+", "--", name.strip("/").rsplit("/", 2)[-1]) or "model"


def _digits(name: str) -> str:
    """What two models of one name differ in."""
    return re.sub(r"[^\w-]+", "-", model_identity(name)).strip("-")[-16:]


def _files(folder: Path) -> Iterator[Path]:
    """The files of a model without hidden ones and pickles, below `folder`."""
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder)
        if file.is_file() and file.suffix not in _PICKLED and not any(part.startswith(".") for part in below.parts):
            yield below


def _copy(folder: Path, models: Storage, label: str, name: str) -> None:
    """Copy the files of `folder` to `label`, then write `label`.json: without it the copy does not count as whole."""
    files = {str(below): (folder / below).stat().st_size for below in _files(folder)}
    if models.is_local:
        target = models.local(label)
        partial = target.with_name(f".{label}-{os.getpid()}-{secrets.token_hex(4)}")
        for file in files:
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            _linked(folder / file, partial / file)
        try:
            partial.rename(target)
        except OSError:  # another driver was faster
            shutil.rmtree(partial)
    else:
        for file in files:
            (models / label).upload_file(folder / file, file)
    models.write_json(f"{label}.json", {"model": name, "files": files})


def _linked(source: Path, target: Path) -> None:
    """The same file under another name where it is large and the disk can, else a copy.

    Weights are replaced, never edited in place; a small file may be edited.
    """
    if source.stat().st_size >= _LINKED_FROM:
        try:
            os.link(source.resolve(), target)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, target)
