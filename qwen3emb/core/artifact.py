"""The record of a stage's folder: what the output was made from, and whether it may be used again.

A stage folder has `started.json` (written first) and `artifact.json` (written last). Both carry the stage's
identity: its resolved configuration, the fingerprints of its inputs and the code version.

- `artifact.json` with the same fingerprint: done, nothing happens again.
- only `started.json` with the same fingerprint: unfinished, the stage resumes.
- another fingerprint: refused with what differs, unless replacing is asked for.

Replacing is three steps, and a kill after any of them leaves nothing that looks complete or can be resumed: first
`started.json` says that the folder is being cleared, then `artifact.json` goes, then all else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.lease import LEASE
from qwen3emb.core.storage import Storage

__all__ = ["Identity", "StageResult", "State", "complete", "finished", "read_record", "start", "state_of"]

_CLEARED = "(being cleared)"
"""Stands for the fingerprint in `started.json` while replaced output is deleted: files that are left belong to it."""

State = Literal["new", "unfinished", "done", "different"]
STARTED, FINISHED = "started.json", "artifact.json"


@dataclass(frozen=True)
class Identity:
    """Everything that decides what a stage produces.

    Attributes:
        stage: its name.
        version: version of the code.
        config: resolved configuration, as far as the output depends on it.
        inputs: name of an input -> its fingerprint.
    """

    stage: str
    version: str
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StageResult:
    """Row counts and figures that a stage returns when it is done.

    Attributes:
        rows_in: rows read.
        rows_out: rows written as usable output.
        rejected: reason -> rows written to the rejects or dropped files.
        metrics: figures of the stage.
        scratch: files and folders that only an unfinished run needs; removed once the record is written.
    """

    rows_in: int
    rows_out: int
    rejected: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()


def state_of(folder: Storage, identity: Identity) -> State:
    """Compare the records in `folder` with `identity`: "different" where they are of another identity."""
    for name, same in ((FINISHED, "done"), (STARTED, "unfinished")):
        if not folder.exists(name):
            continue
        present = folder.read_json(name).get("fingerprint")
        if present != _CLEARED:
            return same if present == identity.fingerprint else "different"  # type: ignore[return-value]
    return "new"


def start(folder: Storage, identity: Identity, replace: bool = False) -> State:
    """Open a stage folder for writing.

    Returns:
        "new" (empty folder), "unfinished" (resume what is there) or "done" (do nothing).

    Raises:
        UserError: the folder holds output of another identity and `replace` is false.
    """
    state = state_of(folder, identity)
    if state == "different":
        if not replace:
            raise UserError(_refusal(folder, identity))
        folder.write_json(STARTED, {"fingerprint": _CLEARED})
        state = "new"
    if state == "new":
        _clear(folder)
        folder.write_json(STARTED, _record(identity))
    return state


def _clear(folder: Storage) -> None:
    """Delete what is left of replaced output, the record first: without it nothing counts as complete."""
    if not folder.exists(STARTED):
        return
    folder.delete(FINISHED)
    for name in folder.entries():
        if name not in (STARTED, LEASE):
            folder.delete(name)


def complete(folder: Storage, identity: Identity, result: StageResult, seconds: float) -> None:
    """Write the completion record, after checking that no row went missing.

    Raises:
        StageFailure: rows in != rows out + rejected rows.
    """
    lost = result.rows_in - result.rows_out - sum(result.rejected.values())
    if lost:
        raise StageFailure(
            f"stage {identity.stage}: {result.rows_in} rows in, but {result.rows_out} out and "
            f"{sum(result.rejected.values())} rejected: {lost} unaccounted for"
        )
    facts = asdict(result)
    record = _record(identity) | {key: value for key, value in facts.items() if key != "scratch"}
    record |= {"seconds": round(seconds, 2), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    folder.write_json(FINISHED, record)
    for name in result.scratch:  # last: a resumed run would take a half-deleted folder for a whole one
        folder.delete(name)


def finished(folder: Storage) -> bool:
    """True where the stage has been completed."""
    return folder.exists(FINISHED)


def read_record(folder: Storage) -> dict[str, Any]:
    """The completion record of a stage.

    Raises:
        UserError: the stage is not complete.
    """
    if not finished(folder):
        raise UserError(f"{folder}: not complete (no {FINISHED}); run that stage first")
    record: dict[str, Any] = folder.read_json(FINISHED)
    return record


def _record(identity: Identity) -> dict[str, Any]:
    return {"fingerprint": identity.fingerprint, **asdict(identity)}


def _refusal(folder: Storage, identity: Identity) -> str:
    present = folder.read_json(FINISHED if folder.exists(FINISHED) else STARTED)
    changes = _differences({k: present.get(k) for k in asdict(identity)}, asdict(identity))
    shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")
    return (
        f"{folder} holds output of another configuration ({present.get('fingerprint')}, now "
        f"{identity.fingerprint}): {shown}. Give --replace to throw it away, or another storage"
    )


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """`key: old -> new` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{place}.{k}" if place else k)]
    if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
        return []
    return [f"{place}: {old!r} -> {new!r}"]
