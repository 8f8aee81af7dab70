"""What happens in a run, as lines of JSON below `events/` of its storage: stages that begin, get on, and end.

Object storage cannot append, and two processes that rewrite one file lose each other's lines. So each process that
takes part in an attempt at a stage has a file of its own, `events/STAGE/TIME-FINGERPRINT-ATTEMPT.WRITER.jsonl`, which
it alone rewrites as a whole: at once where the stage begins or ends, every `EVERY` seconds where there is progress. A
file keeps `_MOST` lines of progress; beyond that every second one goes, so that it stays small however long a stage
takes. The view of the whole run is made where it is read (`event_files`): a merged file on storage would be a second
copy, and out of date just when a driver has died.

Events are no part of an artifact. They lie beside the stages' folders, no fingerprint and no resumed stage looks at
them, and `--replace` leaves them: those of another configuration have another fingerprint in their name.

The lines are written by a thread, and a failure to write them is said once and fails nothing.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from qwen3emb.core.event_files import EVENTS, Attempt, Event, trails
from qwen3emb.core.exits import sentence
from qwen3emb.core.location import redacted
from qwen3emb.core.storage import Storage

__all__ = ["EventLog", "Listener", "Recording", "current_attempt", "note", "recording", "report", "taking_part"]

EVERY = 10.0
"""Seconds between two writes of progress by one process."""

_MOST = 500  # lines of progress in a file: some 150 KB
_PATIENCE = 10.0  # seconds for the last write, after which a stage ends without it

Listener = Callable[[Attempt, Mapping[str, Any]], None]
"""Called with each event of progress, more often than they are written."""


class EventLog:
    """The events of one process in one attempt."""

    def __init__(self, attempt: Attempt, say: Callable[[str], None], listener: Listener | None = None) -> None:
        """Nothing is written before the first event.

        Args:
            attempt: that the process takes part in.
            say: is told, once, that events cannot be written.
            listener: of progress.
        """
        self.attempt = attempt
        self._say, self._listener, self._complained = say, listener, False
        self._began, self._host = time.monotonic(), socket.gethostname()
        self._file = f"{EVENTS}/{attempt.stage}/{attempt.name}.{secrets.token_hex(4)}.jsonl"
        self._lines: list[Event] = []
        self._latest: dict[str, Event] = {}  # work -> how far it is, not among the lines yet
        self._first: dict[str, tuple[float, float]] = {}  # work -> when it was first reported, and how far it was
        self._unwritten = False
        self._lock, self._due, self._ended = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="events", daemon=True)

    def add(self, event: str, **facts: Any) -> None:
        """Write an event at once."""
        with self._lock:
            self._settle()
            self._lines.append(self._line(event, facts))
            self._unwritten = True
        self._start()
        self._due.set()

    def progress(self, work: str, done: float, total: float, **figures: Any) -> None:
        """Tell how far a piece of work is; written within `EVERY` seconds, unless newer progress replaces it."""
        now = time.monotonic()
        with self._lock:
            since, before = self._first.setdefault(work, (now, done))
            if done < before:  # another round of it
                since, before = self._first[work] = now, done
            rate = round((done - before) / (now - since), 4) if done > before and now > since else None
            line = self._line("progress", {"work": work, "done": done, "total": total, "rate": rate} | figures)
            self._latest.pop(work, None)
            self._latest[work] = line
            self._unwritten = True
        self._start()
        if self._listener:
            try:
                self._listener(self.attempt, line)
            except Exception as error:  # as little as a failed write may it end a stage
                self._complain(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Write what is left, unless storage hangs."""
        self._ended.set()
        self._due.set()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self._complain(f"storage did not answer within {_PATIENCE:.0f} s")

    def _start(self) -> None:
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def _line(self, event: str, facts: Mapping[str, Any]) -> Event:
        line: Event = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "stage": self.attempt.stage,
            "event": event,
            "attempt": self.attempt.number,
            "host": self._host,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        known: Event = redacted({key: value for key, value in facts.items() if value is not None})
        return line | known

    def _settle(self) -> None:
        """Make lines of the latest progress, and drop older lines of progress where there are too many."""
        self._lines += self._latest.values()
        self._latest = {}
        progress = [place for place, line in enumerate(self._lines) if line["event"] == "progress"]
        if len(progress) > _MOST:
            dropped = set(progress[:-1:2])
            self._lines = [line for place, line in enumerate(self._lines) if place not in dropped]

    def _write_on(self) -> None:
        ended = False
        while not ended:
            self._due.wait(EVERY)
            self._due.clear()
            ended = self._ended.is_set()
            self._write()

    def _write(self) -> None:
        with self._lock:
            if not self._unwritten:
                return
            self._settle()
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines)
            self._unwritten = False
        try:
            Storage(self.attempt.run).write_bytes(self._file, content.encode(errors="replace"))
        except Exception as error:  # whatever it is: the stage is worth more than its events
            self._unwritten = True  # with the next write
            self._complain(f"{type(error).__name__}: {error}")

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            self._say(f"{self.attempt.stage}: its events cannot be written ({why}); the stage goes on without them")


_log: EventLog | None = None  # of the attempt that this process takes part in; a process has one stage at a time


def report(work: str, done: float, total: float, **figures: Any) -> None:
    """Tell how far the stage of this process is; nothing happens in a process without one.

    Args:
        work: what is counted, e.g. "queries embedded".
        done: how many.
        total: of how many.
        figures: others, e.g. a loss. Those that are None are left out.
    """
    if _log is not None:
        _log.progress(work, done, total, **figures)


def note(event: str, **facts: Any) -> None:
    """Write an event of the stage of this process; nothing happens in a process without one."""
    if _log is not None:
        _log.add(event, **facts)


def current_attempt() -> Attempt | None:
    """The attempt that this process takes part in, to be handed to a process that takes part too."""
    return _log.attempt if _log else None


@contextmanager
def taking_part(
    attempt: Attempt | None, say: Callable[[str], None], listener: Listener | None = None
) -> Iterator[EventLog | None]:
    """Let `report` and `note` write events of an attempt for the time of the block; without an attempt, of none."""
    global _log
    before, own = _log, EventLog(attempt, say, listener) if attempt else None
    _log = own
    try:
        yield own
    finally:
        _log = before
        if own:
            own.close()


class Recording:
    """What a stage's driver writes: that the stage begins, and how it ends."""

    def __init__(
        self, run: Storage, stage: str, fingerprint: str, say: Callable[[str], None], listener: Listener | None
    ) -> None:
        """Nothing is written before `begin`; arguments as in `recording`."""
        self._run, self._stage, self._fingerprint = run, stage, fingerprint
        self._say, self._listener = say, listener
        self.log: EventLog | None = None

    def begin(self, resumed: bool = False, **facts: Any) -> None:
        """The work begins, or goes on from what an earlier attempt has left."""
        attempt = Attempt(
            self._run.uri,
            self._stage,
            self._fingerprint,
            1 + self._attempts_before() if resumed else 1,
            f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}",
        )
        global _log
        _log = self.log = EventLog(attempt, self._say, self._listener)
        self.log.add("resumed" if resumed else "started", fingerprint=self._fingerprint, **facts)

    def finish(self, reason: str, **facts: Any) -> None:
        """The work is done; `reason` says it in a sentence."""
        if self.log:
            self.log.add("finished", reason=reason, **facts)

    def _attempts_before(self) -> int:
        try:
            known = trails(self._run).get(self._stage, [])
        except Exception as error:  # as in `EventLog`
            self._say(f"{self._stage}: earlier events cannot be read ({type(error).__name__}: {error})")
            return 0
        return max((t.attempt.number for t in known if t.attempt.fingerprint == self._fingerprint), default=0)


@contextmanager
def recording(
    run: Storage, stage: str, fingerprint: str, say: Callable[[str], None], listener: Listener | None = None
) -> Iterator[Recording]:
    """Record a stage: from `Recording.begin` on `report` writes its events; an error that leaves the block ends it.

    Args:
        run: the run's storage.
        stage: name of the stage.
        fingerprint: of what it makes.
        say: is told, once, that events cannot be written.
        listener: of progress.
    """
    global _log
    before, record = _log, Recording(run, stage, fingerprint, say, listener)
    try:
        yield record
    except BaseException as error:  # Ctrl-C too
        if record.log:
            record.log.add("failed", reason=sentence(error))
        raise
    finally:
        _log = before
        if record.log:
            record.log.close()
