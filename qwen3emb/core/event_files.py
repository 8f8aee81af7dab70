"""The files of a run's events (`events` writes them): which attempts there were, and what happened in each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyarrow import fs as pafs

from qwen3emb.core.storage import Storage

__all__ = ["EVENTS", "Attempt", "Event", "Trail", "all_events", "events_of", "trails"]

EVENTS = "events"
"""Name of the folder in the run's storage."""

Event = dict[str, Any]
"""A line: `time`, `stage`, `event` (started, resumed, progress, finished, failed), `attempt`, `host`, `seconds`; of
progress also `work`, `done`, `total`, `rate` and further figures, of an end `reason`."""


_NAME = re.compile(r"(?P<began>\d{8}T\d{12}Z)-(?P<fingerprint>\w+)-(?P<number>\d+)\.\w+\.jsonl")


@dataclass(frozen=True)
class Attempt:
    """One driver's try at a stage, as every process that takes part in it knows it.

    Attributes:
        run: URI of the run's storage.
        stage: name of the stage.
        fingerprint: of what the stage makes.
        number: 1, and one more each time that the unfinished stage is resumed.
        began: when, by the driver's clock.
    """

    run: str
    stage: str
    fingerprint: str
    number: int
    began: str

    @property
    def name(self) -> str:
        """What the names of its files begin with."""
        return f"{self.began}-{self.fingerprint}-{self.number}"


@dataclass(frozen=True)
class Trail:
    """What is on storage of one attempt.

    Attributes:
        attempt: the attempt.
        files: names of its files, one for each process, in the run's storage.
        written: when the last of them was written, in seconds since the epoch by the storage's clock.
    """

    attempt: Attempt
    files: tuple[str, ...]
    written: float


def trails(run: Storage) -> dict[str, list[Trail]]:
    """Stage -> its attempts, those of other configurations too, the earliest first; one listing of storage."""
    selector = pafs.FileSelector(run.path(EVENTS), recursive=True, allow_not_found=True)
    found: dict[tuple[str, str], list[Trail]] = {}
    for info in run.filesystem.get_file_info(selector):
        stage, _, file = info.path.rpartition(f"{EVENTS}/")[2].partition("/")
        named = _NAME.fullmatch(file)
        if named and info.type == pafs.FileType.File:
            attempt = Attempt(run.uri, stage, named["fingerprint"], int(named["number"]), named["began"])
            trail = Trail(attempt, (f"{EVENTS}/{stage}/{file}",), info.mtime_ns / 1e9)
            found.setdefault((stage, attempt.name), []).append(trail)
    by_stage: dict[str, list[Trail]] = {}
    for (stage, _), parts in sorted(found.items()):
        files = tuple(sorted(part.files[0] for part in parts))
        by_stage.setdefault(stage, []).append(Trail(parts[0].attempt, files, max(part.written for part in parts)))
    return by_stage


def events_of(run: Storage, trail: Trail) -> list[Event]:
    """The events of an attempt in the order of their times, which are those of each host's clock."""
    return sorted((line for file in trail.files for line in _read(run, file)), key=lambda line: str(line["time"]))


def all_events(run: Storage) -> list[Event]:
    """The events of all stages and attempts of a run, in the order of their times."""
    events = (line for attempts in trails(run).values() for trail in attempts for line in events_of(run, trail))
    return sorted(events, key=lambda line: str(line["time"]))


def _read(run: Storage, file: str) -> Iterator[Event]:
    """The lines of a file that can be read."""
    try:
        lines = run.read_bytes(file).splitlines()
    except FileNotFoundError:  # tidied away since it was listed
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "time" in event and "event" in event:
            yield event
