"""Exported checkpoints of a training stage: there as a whole or not at all, whatever a kill interrupts.

A model directory counts from its contract file on. Locally a finished folder takes its place by one rename; on remote
storage, where a folder is many writes, the contract is written last and removed first.
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
"""Folder of the stage where exports are written before they are whole; nobody looks for models in it."""
_CONTRACT = re.compile(rf"{_FOLDER}/step_(\d+)/{re.escape(CONTRACT_FILE)}")


def checkpoint_name(step: int) -> str:
    """Name of the folder of step `step` (1-based)."""
    return f"step_{step:06d}"


def checkpoint_names(out: Storage) -> list[str]:
    """Whole checkpoints of a training stage, oldest first, as `checkpoints/step_000010`."""
    found = [match for name in out.names(_FOLDER, f"/{CONTRACT_FILE}") if (match := _CONTRACT.fullmatch(name))]
    return [match[0].rpartition("/")[0] for match in sorted(found, key=lambda match: int(match[1]))]


def export_checkpoint(out: Storage, step: int, write: Callable[[Path], None]) -> None:
    """Write the model directory of step `step`, in place of one that is there.

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
    """Remove all but the latest `keep` checkpoints; that of step `best` stays as well."""
    for old in checkpoint_names(out)[:-keep]:
        if best is None or not old.endswith(f"/{checkpoint_name(best)}"):
            _delete(out, old)


def sweep(out: Storage) -> None:
    """Remove what exports of killed attempts have left, those of earlier versions among the checkpoints too."""
    if out.is_local:
        for left in Path(out.path(_FOLDER)).glob(".export-*"):
            shutil.rmtree(left, ignore_errors=True)
    out.delete(_PARTIAL)


def _delete(out: Storage, name: str) -> None:
    """The contract first: what is left of a folder after a kill is no checkpoint."""
    out.delete(f"{name}/{CONTRACT_FILE}")
    out.delete(name)
