"""Work handed out on Ray: each piece to whichever worker is free, lines of progress, every wait with a limit.

A stage that keeps a model or an engine loaded has a `WorkerPool` of actors; one whose pieces share nothing gives
`dispatch` places for tasks. Ray starts a lost actor anew, on any node with room for it, and calls it again with the
same piece, so a piece must be safe to compute twice.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError

from qwen3emb.core.errors import StageFailure
from qwen3emb.core.events import report as report_progress

__all__ = ["START_SECONDS", "Progress", "WorkerPool", "dispatch", "gather", "late", "paced", "within_limits"]

Progress = Callable[[int, int], None]
"""Called with (pieces done, pieces in all)."""

START_SECONDS = 3600.0
"""How long no worker at all may be up: nodes that a cluster adds, and the model that a worker loads."""

PIECE_SECONDS = 24 * 3600.0
"""How long no piece of work may come back."""

_LOOK_SECONDS = 5.0
_END = object()


def paced(say: Callable[[str], None], label: str, seconds: float = 5.0) -> Progress:
    """A callback for (done, total): says `LABEL: DONE of TOTAL` once in `seconds` at most, and at the end.

    The run's events are told too, of the work that the label names after `STAGE: `.
    """
    last = time.monotonic()
    work = label.partition(": ")[2] or label

    def report(done: int, total: int) -> None:
        nonlocal last
        report_progress(work, done, total)
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            say(f"{label}: {done} of {total}")

    return report


def gather(references: Sequence[Any], label: str, seconds: float = PIECE_SECONDS) -> list[Any]:
    """The values of Ray references, in their order, once all are ready.

    Args:
        references: of the results of tasks or actor calls.
        label: name of the work in the message about a wait that is too long.
        seconds: how long to wait for all of them.

    Raises:
        StageFailure: they are not ready in time.
        Exception: what the first failed task or call has raised.
    """
    try:
        return list(ray.get(list(references), timeout=seconds))
    except GetTimeoutError:
        raise late(label, "no answer", seconds) from None


def within_limits(
    results: Iterable[Any],
    label: str,
    *,
    started: Callable[[], bool] = lambda: True,
    start_seconds: float = START_SECONDS,
    piece_seconds: float = PIECE_SECONDS,
) -> Iterator[Any]:
    """The items of an iterator that waits without a limit of its own, as those of Ray Data do; a thread reads it.

    Args:
        results: the iterator.
        label: name of the work in the message about a wait that is too long.
        started: whether a worker is up; while none is, `start_seconds` count.
        start_seconds: how long to wait while no worker is up.
        piece_seconds: how long to wait for the next item once one is.

    Raises:
        StageFailure: one of the two waits is too long.
        Exception: what the iterator raises.
    """
    items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    abandoned = threading.Event()
    threading.Thread(target=_read_into, args=(results, items, abandoned), name=label, daemon=True).start()
    try:
        while True:
            item, error = _next_within(items, label, started, start_seconds, piece_seconds)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        abandoned.set()


def _read_into(results: Iterable[Any], items: queue.Queue[Any], abandoned: threading.Event) -> None:
    """Put every item into the queue, then the end or the error, as long as somebody takes them."""

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not abandoned.is_set():
            try:
                items.put((item, error), timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    try:
        for item in results:
            if not put(item):
                return
    except BaseException as error:  # raised again in the thread that reads the queue
        put(None, error)
    else:
        put(_END)


def _next_within(
    items: queue.Queue[Any], label: str, started: Callable[[], bool], start_seconds: float, piece_seconds: float
) -> Any:
    began = time.monotonic()
    while True:
        is_up = started()
        limit = piece_seconds if is_up else start_seconds
        left = limit - (time.monotonic() - began)
        if left <= 0:
            raise late(label, "no piece of work was finished" if is_up else "no worker was up", limit)
        try:
            return items.get(timeout=min(left, _LOOK_SECONDS))
        except queue.Empty:
            continue


def dispatch(
    workers: Sequence[Any],
    start: Callable[[Any, Any], Any],
    pieces: Iterable[Any],
    label: str,
    *,
    start_seconds: float = START_SECONDS,
    piece_seconds: float = PIECE_SECONDS,
) -> Iterator[Any]:
    """The results of all pieces as they come, each piece on the first worker that is free.

    Args:
        workers: actors; None stands for the place of a task. An actor gets its first piece when it is up, so one that
            the cluster has no room for yet keeps nothing from the others.
        start: called with (worker, piece); returns the reference of the result.
        pieces: taken when a worker is free, not before.
        label: name of the work in the message about a wait that is too long.
        start_seconds: how long to wait while no worker is up.
        piece_seconds: how long to wait for the next finished piece.

    Raises:
        StageFailure: one of the two waits is too long.
        Exception: what a piece has raised. Running tasks are then cancelled; the caller ends the actors.
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
                    raise late(label, "no piece of work was finished", piece_seconds)
                raise late(label, f"none of {len(workers)} workers was up", start_seconds)
            [first] = ready
            is_result = first in running
            free.append(running.pop(first) if is_result else starting.pop(first))
            [result] = gather([first], label, piece_seconds)  # there already, unless its node was just lost
            if is_result:
                yield result
    finally:
        for reference, worker in running.items():
            if worker is None:
                ray.cancel(reference)


class WorkerPool:
    """Ray actors of one class, started together and ended together: at the end of the `with` block, or when a call to
    all of them fails (`ask_all`)."""

    def __init__(
        self, worker: type, arguments: Sequence[Any], count: int, label: str, *, retries: int = -1, **options: Any
    ) -> None:
        """Start the actors.

        Args:
            worker: their class. Its constructor must not raise: Ray hides the message of its error.
            arguments: of the constructor.
            count: how many.
            label: name of their work in the message about a wait that is too long.
            retries: how often a call is repeated when its actor was lost; -1 for always.
            options: Ray's options of each actor: resources, environment.
        """
        lasting: Any = ray.remote(worker).options(max_restarts=-1, max_task_retries=retries, **options)
        self.label = label
        self._actors: list[Any] = [lasting.remote(*arguments) for _ in range(count)]

    def __len__(self) -> int:
        """Number of actors."""
        return len(self._actors)

    def run(self, method: str, pieces: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results of `method(*piece)` as they come; see `dispatch`."""
        return dispatch(self._actors, lambda actor, piece: getattr(actor, method).remote(*piece), pieces, self.label)

    def ahead(self, method: str, pieces: Iterable[tuple[Any, ...]], most: int) -> Iterator[Any]:
        """References to the results of `method(*piece)` in the order of the pieces, dealt to the actors in turn.

        At most `most` results beyond those that the caller has taken are computed, which bounds the memory.
        """
        references: deque[Any] = deque()
        for number, piece in enumerate(pieces):
            references.append(getattr(self._actors[number % len(self._actors)], method).remote(*piece))
            if len(references) > most:
                yield references.popleft()
        yield from references

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """The result of `method(*arguments)` on each actor.

        Raises:
            StageFailure: an actor does not answer within `START_SECONDS`.
            Exception: what one of them has raised. In both cases all actors are ended.
        """
        try:
            references = [getattr(actor, method).remote(*arguments) for actor in self._actors]
            return gather(references, self.label, START_SECONDS)
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


def late(label: str, missing: str, seconds: float) -> StageFailure:
    """The error of a wait that took too long: what was missing, what the cluster has, what to change."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return StageFailure(
        f"{label}: {missing} within {_span(seconds)}; the cluster has {has.get('CPU', 0):g} CPUs and "
        f"{has.get('GPU', 0):g} GPUs in all, and `ray status` shows what waits for room: add nodes, or ask for less in "
        "the config, and run again to go on"
    )


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
