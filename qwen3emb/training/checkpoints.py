"""Exported checkpoints of a training stage: complete or not there at all, whenever the process is killed.

A model directory counts as a checkpoint once its contract file is written. Locally a finished folder takes its place by
one rename; on remote storage, where a folder is many writes, the contract is written last and removed first.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from qwen3emb.core.storage import Storage
from qwen3emb.model.contract import CONTRACT_FILE

__all__ = ["checkpoint_name", "checkpoint_names", "drop_oldest", "export_checkpoint", "sweep"]

_FOLDER = "checkpoints"
_PARTIAL = "partial"
"""Folder of the stage in which exports are written until they are complete; models are never read from it."""
_CONTRACT = re.compile(rf"{_FOLDER}/step_(\d+)/{re.escape(CONTRACT_FILE)}")


def checkpoint_name(step: int) -> str:
    """Name of the folder of step `step` (1-based)."""
    return f"step_{step:06d}"


def checkpoint_names(out: Storage) -> list[str]:
    """Names of the complete checkpoints of a training stage, oldest first, as `checkpoints/step_000010`."""
    contracts = [match for name in out.names(_FOLDER, f"/{CONTRACT_FILE}") if (match := _CONTRACT.fullmatch(name))]
    return [match[0].rpartition("/")[0] for match in sorted(contracts, key=lambda match: int(match[1]))]


def export_checkpoint(out: Storage, step: int, write: Callable[[Path], None]) -> None:
    """Write the model directory of step `step`; an existing one of that step is replaced.

    Args:
        out: the stage's folder.
        step: 1-based.
        write: fills an empty local folder.
    """
    target = f"{_FOLDER}/{checkpoint_name(step)}"
    if not out.is_local:
        _upload(out, target, write)
        return
    folder = Path(out.path(_PARTIAL)) / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)  # not mkdtemp, whose folders nobody else may read
    write(folder)
    _delete(out, target)
    place = Path(out.path(target))
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)


def _upload(out: Storage, target: str, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        contract = (folder / CONTRACT_FILE).read_bytes()
        (folder / CONTRACT_FILE).unlink()
        _delete(out, target)
        out.upload(folder, target)
        out.write_bytes(f"{target}/{CONTRACT_FILE}", contract)


def drop_oldest(out: Storage, keep: int, best: int | None) -> None:
    """Remove all but the latest `keep` checkpoints; the checkpoint of step `best` is kept as well."""
    for old in checkpoint_names(out)[:-keep]:
        if best is None or not old.endswith(f"/{checkpoint_name(best)}"):
            _delete(out, old)


def sweep(out: Storage) -> None:
    """Remove unfinished exports of killed attempts, including those that earlier versions wrote into `checkpoints/`."""
    if out.is_local:
        for left in Path(out.path(_FOLDER)).glob(".export-*"):
            shutil.rmtree(left, ignore_errors=True)
    out.delete(_PARTIAL)


def _delete(out: Storage, name: str) -> None:
    """Delete a checkpoint, its contract first: what a kill leaves of the folder is then no checkpoint."""
    out.delete(f"{name}/{CONTRACT_FILE}")
    out.delete(name)
