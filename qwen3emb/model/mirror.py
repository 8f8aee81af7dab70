"""The models of a run, in `models/` of its storage: the copy that every node and every later stage reads.

A model may lie in a folder of one machine, in its cache, on the hub or on other storage. Whoever first has it (the
machine that submits the run, or the driver of the first stage that needs it) copies it to the run's storage; from then
on only its URI is handed around, and each node fetches it once (`Storage.local`).

    models/LABEL/          the files
    models/LABEL.json      written last: name, identity, files
    models/named/KEY.json  the latest copy of a name, for drivers on machines that do not have the model
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import UserError
from qwen3emb.core.location import is_uri, joined
from qwen3emb.core.storage import Storage, external_fingerprint
from qwen3emb.model.fetch import fetch_model, is_endpoint, is_hub_id, resolve_model
from qwen3emb.model.identity import model_identity, tokenizer_identity

__all__ = ["MODELS", "is_here", "is_in_run", "run_identity", "run_model", "run_tokenizer_identity"]

MODELS = "models"
"""Folder of the copies, below the run's storage."""

_ABLATION = "/ablation/"
_LINKED_FROM = 1 << 20  # bytes
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx"}


def run_model(storage: str, name: str, say: Callable[[str], None] = lambda _: None) -> str:
    """The URI of the run's copy of a model, which is made where it is missing.

    Args:
        storage: of the run.
        name: a directory, a name of `fetch-model`, a hub id; a URI or the address of a server is returned as it is.
        say: called with a line before a model is copied, since its gigabytes take a while.

    Raises:
        UserError: there is no such model on this machine nor in the run, and the hub does not give it.
    """
    if is_endpoint(name) or is_uri(name):
        return name  # for every node alike
    noted = None if is_here(name) else _noted(storage, name)
    if noted is not None:
        return (_home(storage) / str(noted["label"])).uri
    folder = _fetched(name)
    models, digits = _home(storage), model_identity(name)
    label = f"{_label(name)}-{_digits(digits)}"
    if not models.exists(f"{label}.json"):
        say(f"models: copying {name} to {models / label}")
        note = {"model": name, "identity": digits, "tokenizer": tokenizer_identity(name)}
        _copy(folder, models, label, note)
    pointer = {"model": name, "label": label}
    if _read(models, _pointer(name)) != pointer:
        models.write_json(_pointer(name), pointer)
    return (models / label).uri


def run_identity(storage: str, name: str) -> str:
    """`model_identity` of a model of a run: of a name that is not on this machine, what the run's copy says.

    Raises:
        UserError: there is no such model on this machine nor in the run.
    """
    noted = _copy_of(storage, name)
    return str(noted["identity"]) if noted else _of_uri(name) or model_identity(name)


def run_tokenizer_identity(storage: str, name: str) -> str:
    """`tokenizer_identity`, likewise."""
    noted = _copy_of(storage, name)
    return str(noted["tokenizer"]) if noted else _of_uri(name) or tokenizer_identity(name)


def is_here(name: str) -> bool:
    """Whether the model lies in a folder of this machine, so that nothing has to be fetched."""
    if is_uri(name):
        return False
    try:
        resolve_model(name)
    except UserError:
        return False
    return True


def is_in_run(storage: str, name: str) -> bool:
    """Whether the model lies on this machine or in the run's storage."""
    return is_here(name) or _copy_of(storage, name) is not None


def _home(storage: str) -> Storage:
    """`models/` of a run; a variant of an ablation shares that of the run it lies below."""
    before, found, _ = storage.partition(_ABLATION)
    _, question, options = storage.partition("?")
    return Storage(joined(before + question + options if found else storage, MODELS))


def _of_uri(name: str) -> str:
    """The fingerprint of a model on storage that nobody has to fetch for it; empty for other names."""
    on_storage = is_uri(name) and not is_endpoint(name) and not Storage(name).is_local
    return external_fingerprint(name) if on_storage else ""


def _copy_of(storage: str, name: str) -> dict[str, Any] | None:
    """What is noted with the run's copy: of a copy's URI, and of a name that is not on this machine."""
    if is_endpoint(name):
        return None
    models, label = _home(storage), name.partition("?")[0].rpartition("/")[2] or MODELS
    if (models / label).uri == name:
        return _read(models, f"{label}.json")
    if is_uri(name):
        return None
    return None if is_here(name) else _noted(storage, name)


def _noted(storage: str, name: str) -> dict[str, Any] | None:
    """What is noted with the latest copy that a run has of a model's name."""
    models = _home(storage)
    pointer = _read(models, _pointer(name))
    noted = _read(models, f"{pointer['label']}.json") if pointer else None
    return {**noted, "label": pointer["label"]} if pointer and noted else None


def _pointer(name: str) -> str:
    return f"named/{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _read(models: Storage, file: str) -> dict[str, Any] | None:
    return models.read_json(file) if models.exists(file) else None


def _fetched(name: str) -> Path:
    """The model's folder on this machine; a hub model that is not there is fetched."""
    return fetch_model(name) if is_hub_id(name) else resolve_model(name)


def _label(name: str) -> str:
    return re.sub(r"[^\w.-]+", "--", name.strip("/").rsplit("/", 2)[-1]) or "model"


def _digits(identity: str) -> str:
    """What two models of one name differ in."""
    return re.sub(r"[^\w-]+", "-", identity).strip("-")[-16:]


def _files(folder: Path) -> Iterator[Path]:
    """The files of a model without hidden ones and pickles, below `folder`."""
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder)
        if file.is_file() and file.suffix not in _PICKLED and not any(part.startswith(".") for part in below.parts):
            yield below


def _copy(folder: Path, models: Storage, label: str, note: dict[str, Any]) -> None:
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
    models.write_json(f"{label}.json", {**note, "files": files})


def _linked(source: Path, target: Path) -> None:
    """The same file under another name where it is large and the disk can, else a copy.

    Weights are replaced, never edited in place; a small file may be edited.
    """
    if source.stat().st_size >= _LINKED_FROM:
        with suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)
