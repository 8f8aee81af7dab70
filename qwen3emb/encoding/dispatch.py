"""Work handed out on Ray: each piece to whichever worker is free, lines of progress, every wait with a limit.

What a worker does is the caller's. A stage that keeps a model or an engine loaded has a `WorkerPool` of actors; one
whose pieces share nothing gives `dispatch` places for tasks. An actor that is lost is started anew by Ray, wherever
there is room, and gets its piece again, so a piece must be one that can be done twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError

from qwen3emb.core.errors import StageFailure

__all__ = ["Progress", "WorkerPool", "dispatch", "gather", "paced"]

Progress = Callable[[int, int], None]
"""Called with (pieces done, pieces in all)."""

START_SECONDS = 3600.0
"""How long no worker at all may be up: nodes that a cluster adds, and the model that a worker loads."""

PIECE_SECONDS = 24 * 3600.0
"""How long no piece of work may come back."""

_END = object()


def paced(say: Callable[[str], None], what: str, seconds: float = 5.0) -> Progress:
    """A callback for (done, total): says `WHAT: DONE of TOTAL` once in `seconds` at most, and at the end."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            say(f"{what}: {done} of {total}")

    return report


def gather(asked: Sequence[Any], what: str, seconds: float = PIECE_SECONDS) -> list[Any]:
    """The values of Ray references, once all are there.

    Args:
        asked: the references.
        what: is waited for, as the sentence on a wait that is too long names it.
        seconds: how long to wait for all of them.

    Raises:
        StageFailure: they are not there in time.
        Exception: what the first of them that failed has raised.
    """
    try:
        return list(ray.get(list(asked), timeout=seconds))
    except GetTimeoutError:
        raise _late(what, "no answer", seconds) from None


def dispatch(
    workers: Sequence[Any],
    start: Callable[[Any, Any], Any],
    pieces: Iterable[Any],
    what: str,
    *,
    start_seconds: float = START_SECONDS,
    piece_seconds: float = PIECE_SECONDS,
) -> Iterator[Any]:
    """The results of all pieces as they come, each piece on the first worker that is free.

    Args:
        workers: actors; None stands for the place of a task. An actor gets its first piece when it is up, so one that
            the cluster has no room for yet keeps nothing from the others.
        start: called with (worker, piece); the reference of the result.
        pieces: taken when a worker is free, not before.
        what: is waited for, as the sentence on a wait that is too long names it.
        start_seconds: how long no worker at all may be up.
        piece_seconds: how long no piece may come back.

    Raises:
        StageFailure: one of the two waits is too long.
        Exception: what a piece has raised. Tasks under way are then cancelled; actors are their owner's to end.
    """
    waiting = iter(pieces)
    starting = {worker.__ray_ready__.remote(): worker for worker in workers if worker is not None}
    free = deque(worker for worker in workers if worker is None)
    running: dict[Any, Any] = {}
    try:
        while True:
            while free and (piece := next(waiting, _END)) is not _END:
                worker = free.popleft()
                running[start(worker, piece)] = worker
            if not running and (free or not workers):
                return
            hopes = list(running) if free else [*running, *starting]  # where one is free, no piece is left
            ready, _ = ray.wait(hopes, timeout=piece_seconds if running else start_seconds)
            if not ready:
                if running:
                    raise _late(what, "no piece of work was finished", piece_seconds)
                raise _late(what, f"none of {len(workers)} workers was up", start_seconds)
            [first] = ready
            came = first in running
            free.append(running.pop(first) if came else starting.pop(first))
            result = ray.get(first)
            if came:
                yield result
    finally:
        for reference, worker in running.items():
            if worker is None:
                ray.cancel(reference)


class WorkerPool:
    """Ray actors of one class, started together and ended together: with the `with` block, or where all must answer
    and one cannot."""

    def __init__(
        self, worker: type, arguments: Sequence[Any], count: int, what: str, *, retries: int = -1, **options: Any
    ) -> None:
        """Start the actors.

        Args:
            worker: their class. Its constructor must not raise: Ray hides what it said.
            arguments: of the constructor.
            count: how many.
            what: they do, as the sentence on a wait that is too long names it.
            retries: how often a call is made again whose actor was lost; -1 for always.
            options: Ray's options of each: resources, environment.
        """
        lasting: Any = ray.remote(worker).options(max_restarts=-1, max_task_retries=retries, **options)
        self.what = what
        self._actors: list[Any] = [lasting.remote(*arguments) for _ in range(count)]

    def __len__(self) -> int:
        """Actors."""
        return len(self._actors)

    def run(self, method: str, pieces: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results of `method(*piece)` as they come; see `dispatch`."""
        return dispatch(self._actors, lambda actor, piece: getattr(actor, method).remote(*piece), pieces, self.what)

    def ahead(self, method: str, pieces: Iterable[tuple[Any, ...]], most: int) -> Iterator[Any]:
        """References to the results of `method(*piece)` in order, dealt to the actors in turn.

        At most `most` more than were taken are computed, so that what waits for its turn is bounded.
        """
        asked: deque[Any] = deque()
        for number, piece in enumerate(pieces):
            asked.append(getattr(self._actors[number % len(self._actors)], method).remote(*piece))
            if len(asked) > most:
                yield asked.popleft()
        yield from asked

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What `method` gives on each actor; ends them all where one cannot answer, within `START_SECONDS`."""
        try:
            asked = [getattr(actor, method).remote(*arguments) for actor in self._actors]
            return gather(asked, self.what, START_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the actors."""
        self.close()


def _late(what: str, missing: str, seconds: float) -> StageFailure:
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return StageFailure(
        f"{what}: {missing} within {_span(seconds)}; the cluster has {has.get('CPU', 0):g} CPUs and "
        f"{has.get('GPU', 0):g} GPUs in all, and `ray status` shows what waits for room: add nodes, or ask for less in "
        "the config, and run again to go on"
    )


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
