"""Where a run stands, from its storage alone: records, leases and events. Imports no ray, torch or vllm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import Identity, finished, read_record, state_of
from qwen3emb.core.event_files import Event, Trail, events_of, trails
from qwen3emb.core.lease import BEAT, EXPIRY, Holder, holder_of
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.stages import enabled_stages, identity, stage_folder

__all__ = ["PIPELINE", "Ending", "RunStatus", "RunWatch", "StageStatus"]

PIPELINE = "pipeline"
"""Stands for a stage's name in the events of the pipeline itself."""

_ENDS = ("finished", "failed")
_OF_EVERY_EVENT = ("time", "stage", "event", "attempt", "host", "seconds")


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run; what is not known is None.

    Attributes:
        stage: its name.
        state: that of its artifact (`core.artifact.State`), or what its driver is about: "running", "lost" (a driver
            without a sign of life for longer than its lease), "failed".
        fingerprint: of what is in its folder, else of what it will make.
        rows: rows of the finished stage.
        rejected: rows that it rejected.
        seconds: of the finished stage, else since the latest attempt began.
        work: what `done` counts, e.g. "queries embedded".
        done: rows of it that are done.
        total: of how many.
        rate: rows per second.
        eta_seconds: until `total` at this rate. A stage may have several such works after one another.
        silent_seconds: since the driver's last sign of life, or since the end.
        attempt: number of the latest attempt.
        host: machine of the driver, else of the latest event.
        figures: further ones of the latest progress, e.g. `loss`.
        reason: why it ended, in a sentence.
    """

    stage: str
    state: str
    fingerprint: str
    rows: int | None = None
    rejected: int | None = None
    seconds: float | None = None
    work: str | None = None
    done: float | None = None
    total: float | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    silent_seconds: float | None = None
    attempt: int | None = None
    host: str | None = None
    figures: Mapping[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Ending:
    """Why there is nothing more to watch.

    Attributes:
        failed: whether a stage, or the pipeline, ended without its work done.
        sentence: says it.
    """

    failed: bool
    sentence: str


@dataclass(frozen=True)
class RunStatus:
    """One look at a run: its stages in order, and how it ended, if it did."""

    stages: Sequence[StageStatus]
    ending: Ending | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"stages": [asdict(s) for s in self.stages], "ending": asdict(self.ending) if self.ending else None}


class RunWatch:
    """Looks at a run, as often as it is asked to."""

    def __init__(self, cfg: RunConfig) -> None:
        """Find out what each stage would make, once: it takes seconds where sources are large.

        Raises:
            UserError: a file or model that a stage reads is missing.
        """
        known: dict[str, Identity] = {}
        self._cfg, self._run = cfg, Storage(cfg.storage)
        self._identities = {name: identity(cfg, name, known) for name in enabled_stages(cfg)}
        self._began = time.monotonic()
        self._signs: dict[str, tuple[float, float]] = {}  # stage -> (its last sign, when it was seen by our clock)
        self._presumed: set[str] = set()  # stages that are lost as far as one can tell by the time

    def look(self) -> RunStatus:
        """The run as it is now."""
        attempts = trails(self._run)
        latest = {
            name: next((t for t in reversed(attempts.get(name, [])) if t.attempt.fingerprint == what.fingerprint), None)
            for name, what in self._identities.items()
        }
        stages = [self._stage(name, latest[name]) for name in self._identities]
        began = {name: trail.attempt.began for name, trail in latest.items() if trail}
        return RunStatus(stages, self._ending(stages, began, attempts.get(PIPELINE, [])))

    def _stage(self, name: str, trail: Trail | None) -> StageStatus:
        what, folder = self._identities[name], stage_folder(self._cfg, name)
        state = state_of(folder, what)
        if state in ("done", "different"):
            return _ended(name, state, folder, what)
        holder = holder_of(folder)
        if state == "new" and not holder:  # events of it, if any, are of a folder that was removed
            return StageStatus(name, state, what.fingerprint)
        events = events_of(self._run, trail) if trail else []
        last = events[-1] if events else {}
        end = next((e for e in events if e["event"] == "failed"), {})  # a worker's clock may be ahead of the driver's
        status = StageStatus(
            name,
            "failed" if state == "unfinished" and end else state,
            what.fingerprint,
            attempt=last.get("attempt"),
            host=last.get("host"),
            reason=end.get("reason"),
            silent_seconds=_age(last.get("time")),
            seconds=_between(events[0]["time"], last["time"]) if events else None,
        )
        status = replace(status, **_progress(events))
        return self._held(status, holder, trail, events) if holder else status

    def _held(self, status: StageStatus, holder: Holder, trail: Trail | None, events: Sequence[Event]) -> StageStatus:
        """The status of a stage whose folder a driver holds, or has died with."""
        silent = self._silent(status.stage, max(holder.renewed, trail.written if trail else 0.0))
        status = replace(status, silent_seconds=round(silent, 1), host=holder.host or status.host)
        self._presumed.discard(status.stage)
        if holder.ended:
            return replace(status, state="lost", reason=f"{holder.who} has ended without a word; run again to go on")
        if silent > EXPIRY:
            self._presumed.add(status.stage)
            reason = f"no sign of life of {holder.who} for more than {EXPIRY:.0f} s; run again to go on"
            return replace(status, state="lost", reason=reason)
        since = _age(events[0]["time"]) if events else None
        rate, left = status.rate, (status.total or 0) - (status.done or 0)
        eta = round(left / rate, 1) if rate and left >= 0 else None
        return replace(status, state="running", seconds=since, eta_seconds=eta, reason=None)

    def _silent(self, stage: str, sign: float) -> float:
        """Seconds without a sign of life: at the first look by the storage's clock, from then on by ours alone."""
        now, before = time.monotonic(), self._signs.get(stage)
        if before is None:
            self._signs[stage] = (sign, now - max(0.0, time.time() - sign))
        elif sign != before[0]:
            self._signs[stage] = (sign, now)
        return now - self._signs[stage][1]

    def _ending(
        self, stages: Sequence[StageStatus], began: Mapping[str, str], pipelines: Sequence[Trail]
    ) -> Ending | None:
        """How the run ended: all is done, a stage has failed since the latest pipeline began, or that one is over."""
        if all(s.state == "done" for s in stages):
            return Ending(False, "every stage is done")
        # Our clock may differ from the storage's: a driver is lost for good when two of its beats were missed here.
        young = time.monotonic() - self._began < 2 * BEAT
        perhaps = [s for s in stages if s.state == "lost" and s.stage in self._presumed and young]
        if perhaps or any(s.state == "running" for s in stages):
            return None
        since = pipelines[-1].attempt.began if pipelines else ""
        broken = [s for s in stages if s.state in ("failed", "lost") and began.get(s.stage, since) >= since]
        if broken:
            latest = max(broken, key=lambda s: began.get(s.stage, ""))
            return Ending(True, f"{latest.stage}: {latest.reason}")
        last = events_of(self._run, pipelines[-1])[-1:] if pipelines else []
        if not last or last[0]["event"] not in _ENDS:
            return None
        return Ending(last[0]["event"] == "failed", str(last[0].get("reason")))


def _ended(name: str, state: str, folder: Storage, what: Identity) -> StageStatus:
    """The status of a stage with a record, of this configuration or another one."""
    record = read_record(folder) if finished(folder) else {}
    return StageStatus(
        name,
        state,
        record.get("fingerprint") or what.fingerprint,
        rows=record.get("rows_out"),
        rejected=sum(record["rejected"].values()) if record else None,
        seconds=record.get("seconds"),
        silent_seconds=_age(record.get("finished")),
    )


def _progress(events: Sequence[Event]) -> dict[str, Any]:
    """The latest progress among the events of an attempt."""
    latest = next((e for e in reversed(events) if e["event"] == "progress"), {})
    known = ("work", "done", "total", "rate")
    figures = {k: v for k, v in latest.items() if k not in (*known, *_OF_EVERY_EVENT)}
    return {key: latest.get(key) for key in known} | {"figures": figures or None}


def _age(moment: str | None) -> float | None:
    """Seconds since a moment that a record or an event names."""
    return None if moment is None else _between(moment, datetime.now(UTC).isoformat())


def _between(first: str, last: str) -> float:
    span = datetime.fromisoformat(last) - datetime.fromisoformat(first)
    return max(0.0, round(span.total_seconds(), 1))
