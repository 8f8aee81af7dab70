"""A lease on a stage's folder, so that one driver at a time writes to it: `lease.json` names the driver that holds it.

The holder rewrites the file every `BEAT` seconds. A driver that sees it unchanged for `EXPIRY` seconds of its own clock
takes the folder over; clocks of two machines are never compared. A holder on this machine whose process has ended is
known to be dead, and its folder is free at once.

Storage has no "create unless it exists", so a driver takes a folder in three steps: it writes its own lease, waits, and
reads which driver's lease is there. A driver that was suspended for longer than `EXPIRY` (a sleeping laptop) finds
another driver's lease when it goes on, and ends; what it writes in the seconds before that is not prevented.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.storage import Storage

__all__ = ["EXPIRY", "LEASE", "Holder", "Lease", "held", "holder_of"]

_log = logging.getLogger(__name__)

LEASE = "lease.json"
"""Name of the file in the stage's folder."""

BEAT = 15.0
"""Seconds between two renewals of a lease."""

EXPIRY = 75.0
"""Seconds without a renewal after which another driver may take the folder over."""

_POLL = 1.0  # seconds between two reads of another driver's lease
_SETTLE_LOCAL, _SETTLE_REMOTE = 0.2, 2.0  # seconds in which drivers that take a folder at once see each other


class Lease:
    """A folder's lease, held by this process until `release`."""

    def __init__(self, folder: Storage, content: dict[str, Any]) -> None:
        """Start to renew the lease in a thread; `content` has just been written to the file."""
        self._folder, self._content = folder, content
        self._renewed = time.monotonic()
        self._ended, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another driver took the folder over, or this one could not renew its lease for too long."""
        return self._lost.is_set()

    def check(self) -> None:
        """Read the file again; to be called before something is written that other stages rely on.

        Raises:
            StageFailure: the lease is lost.
        """
        if not self.lost and not self._stands():
            self._lost.set()
        if self.lost:
            raise StageFailure(f"{self._folder}{self._why_lost()}")

    def release(self) -> None:
        """Stop renewing, and delete the lease where it is still this driver's."""
        self._ended.set()
        self._thread.join(EXPIRY)  # storage that hangs must not hold the driver; the thread is a daemon
        if not self.lost and _read(self._folder).get("token") == self._content["token"]:
            self._folder.delete(LEASE)

    def _stands(self) -> bool:
        """Whether the lease is this driver's. A damaged one is: a driver that takes over writes a readable one."""
        lease = _parsed(self._folder)
        return lease is not None and lease.get("token", self._content["token"]) == self._content["token"]

    def _why_lost(self) -> str:
        holder = _read(self._folder)
        if holder.get("token") == self._content["token"]:
            return f": this driver showed no life for {EXPIRY:.0f} s, so that another may take it; it stops here"
        if not holder:
            return (
                f": its {LEASE} was removed or damaged, by hand or by a driver that took over and has ended; this "
                "driver stops here"
            )
        return (
            f" was taken over by {_who(holder)}, since this driver showed no life for {EXPIRY:.0f} s; it stops here "
            "and leaves the folder to that one"
        )

    def _beat(self) -> None:
        alive = True
        while alive and not self._ended.wait(BEAT):
            try:
                alive = self._renew() and time.monotonic() - self._renewed <= EXPIRY
            except Exception as error:  # else the thread would end and the stage write on without a lease
                _log.warning("the lease cannot be renewed: %s: %s", type(error).__name__, error)
                alive = False
        if not alive:
            self._lost.set()
            _interrupt()  # `held` turns it into a StageFailure

    def _renew(self) -> bool:
        """Rewrite the file; false where the lease is another driver's. Errors of storage are left to the next beat."""
        try:
            if not self._stands():
                return False
            self._content["beat"] += 1
            self._folder.write_json(LEASE, self._content)
            self._renewed = time.monotonic()
        except OSError:
            pass
        return True


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, for those who only watch.

    Attributes:
        who: the driver, in words.
        host: its machine, where the lease can be read.
        renewed: when the lease was last written, in seconds since the epoch by the storage's clock.
        ended: known to have ended without letting go: a process of this machine that is gone.
    """

    who: str
    host: str | None
    renewed: float
    ended: bool


def holder_of(folder: Storage) -> Holder | None:
    """The driver that a folder's lease names, alive or not; None where there is no lease."""
    written = folder.filesystem.get_file_info(folder.path(LEASE)).mtime_ns
    lease = _parsed(folder)
    if written is None or lease is None:
        return None
    who = _who(lease) if lease else "a driver whose lease is damaged"
    return Holder(who, lease.get("host"), written / 1e9, _is_dead(lease))


@contextmanager
def held(folder: Storage, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold a folder's lease for the time of the block.

    Args:
        folder: the stage's folder.
        say: called with a sentence before a wait that shows whether another driver is alive.

    Raises:
        UserError: another driver has it.
        StageFailure: it was lost within the block.
    """
    with _interruptible():
        lease = Lease(folder, _taken(folder, say))
        try:
            yield lease
        except BaseException:  # the interrupt, or what the stage made of it
            if lease.lost:
                lease.check()
            raise
        finally:
            lease.release()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let `_interrupt` raise KeyboardInterrupt in the main thread. By SIGUSR1: background jobs may ignore SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _interrupt() -> None:
    if signal.getsignal(signal.SIGUSR1) is signal.default_int_handler:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _taken(folder: Storage, say: Callable[[str], None]) -> dict[str, Any]:
    """Write a lease of this process, and return its content when no other driver has written over it.

    Raises:
        UserError: another driver holds the folder or took it at the same time, or `lease.json` is a folder.
    """
    _wait_until_free(folder, say)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {"token": secrets.token_hex(8), **_myself(), "since": since, "beat": 0}
    try:
        folder.write_json(LEASE, mine)
    except OSError as error:
        if not folder.is_local or not Path(folder.path(LEASE)).is_dir():
            raise
        raise UserError(
            f"{folder.path(LEASE)} is a folder; remove it, the driver of a stage writes a file there"
        ) from error
    time.sleep(_SETTLE_LOCAL if folder.is_local else _SETTLE_REMOTE)
    winner = _read(folder)
    if winner.get("token") != mine["token"]:
        raise UserError(_refusal(folder, winner))
    return mine


def _wait_until_free(folder: Storage, say: Callable[[str], None]) -> None:
    """Return when nobody has the folder.

    Raises:
        UserError: another driver has it, and is alive.
    """
    first = _read(folder)
    if not first or _is_dead(first):
        return
    if _is_here(first):
        raise UserError(_refusal(folder, first))
    say(f"{folder} was last written by {_who(first)}; waiting up to {EXPIRY:.0f} s whether it shows life")
    seen = time.monotonic()
    while time.monotonic() - seen < EXPIRY:
        time.sleep(min(_POLL, BEAT / 2))
        now = _read(folder)
        if not now:
            return
        if now != first:
            raise UserError(_refusal(folder, now))


def _refusal(folder: Storage, holder: dict[str, Any]) -> str:
    expires = datetime.now(UTC) + timedelta(seconds=EXPIRY)
    return (
        f"{folder} is being written by {_who(holder)}; wait until it is done, or end it. "
        f"Should it die, its lease expires at {expires:%H:%M:%S} UTC ({EXPIRY:.0f} s without a sign of life)"
    )


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "another driver, which has ended"
    pid, host, since = (holder.get(name, "?") for name in ("pid", "host", "since"))
    return f"process {pid} on {host} since {since}"


def _read(folder: Storage) -> dict[str, Any]:
    """The lease in the folder; empty where there is none that can be read."""
    return _parsed(folder) or {}


def _parsed(folder: Storage) -> dict[str, Any] | None:
    """The lease in the folder; empty where it is damaged (no JSON, no token, not a file), None where there is none."""
    try:
        content = folder.read_json(LEASE)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    except OSError:
        if folder.is_local:  # a folder, or not ours to read; elsewhere it is the connection
            return {}
        raise
    return content if isinstance(content, dict) and isinstance(content.get("token"), str) else {}


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether the holder's process id can be looked up on this machine: same machine, same boot, same container."""
    return holder.get("machine") == _machine()


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to have ended: its process on this machine is gone, or its lease names none."""
    return _is_here(holder) and _started(holder.get("pid")) != (holder.get("started") or "unknown")


def _machine() -> str:
    places = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")
    boot, container = Path(places[0]), Path(places[1])
    known = [boot.read_text().strip() if boot.is_file() else "", socket.gethostname()]
    return " ".join([*known, os.readlink(container) if container.is_symlink() else ""])


def _started(pid: Any) -> str:
    """When a process of this machine began, in ticks since the boot; "" where there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
