"""Work handed out on real Ray actors and tasks: every piece once, whoever is lost, and no wait without an end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError, TaskCancelledError

from qwen3emb.config.training import TrainEmbeddingConfig
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.encoding.dispatch import WorkerPool, dispatch, gather, within_limits
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.training.loop import TrainJob, fit
from qwen3emb.training.tasks import EmbeddingTask

pytestmark = pytest.mark.integration


class Squares:
    """Squares numbers and says in which process."""

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset

    def square(self, number: int) -> tuple[int, int]:
        time.sleep(0.02)
        return number * number + self._offset, os.getpid()

    def end_at_first(self, number: int, folder: str) -> int:
        """Ends this process the first time that it is asked for 3."""
        mark = Path(folder) / "ended"
        if number == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def refuse(self, number: int) -> int:
        if number == 5:
            raise UserError("five is not taken")
        return number


@pytest.fixture(scope="module", autouse=True)
def sent_by_value() -> Iterator[None]:
    """Ray's workers cannot import this file."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def pool(sent_by_value: None) -> Iterator[WorkerPool]:
    """Two actors."""
    with WorkerPool(Squares, (1,), 2, "squares", num_cpus=0.5) as workers:
        yield workers


def test_every_piece_comes_back_once_from_all_workers(pool: WorkerPool) -> None:
    found = list(pool.run("square", ((n,) for n in range(60))))
    assert Counter(square for square, _ in found) == Counter(n * n + 1 for n in range(60))
    assert len({process for _, process in found}) == len(pool) == 2
    assert list(pool.run("square", [])) == []


def test_pieces_are_taken_when_a_worker_is_free(pool: WorkerPool) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[tuple[int]]:
        for number in range(20):
            taken.append(number)
            yield (number,)

    for came, _ in enumerate(pool.run("square", numbers())):
        assert len(taken) <= came + 2, "a piece was taken while no worker was free"
    assert taken == list(range(20))


def test_what_is_read_ahead_comes_in_order_and_goes_from_actor_to_actor(pool: WorkerPool) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[tuple[int]]:
        for number in range(12):
            taken.append(number)
            yield (number,)

    references = pool.ahead("square", numbers(), 3)
    first = next(references)
    assert taken == [0, 1, 2, 3]
    squares = [square for square, _ in gather([first, *references], "squares")]
    assert squares == [n * n + 1 for n in range(12)]


def test_the_piece_of_a_lost_actor_is_done_again(pool: WorkerPool, tmp_path: Path) -> None:
    found = list(pool.run("end_at_first", [(n, str(tmp_path)) for n in range(10)]))
    assert (tmp_path / "ended").exists()
    assert sorted(found) == list(range(10))


def test_a_retry_that_is_not_allowed_is_not_made(tmp_path: Path) -> None:
    with (
        WorkerPool(Squares, (), 1, "squares", retries=0, num_cpus=0.1) as one,
        pytest.raises(ray.exceptions.RayActorError),
    ):
        list(one.run("end_at_first", [(3, str(tmp_path))]))


def test_an_actor_without_room_keeps_nothing_from_the_others() -> None:
    start: Any = ray.remote(Squares)
    homeless, here = start.options(resources={"nowhere": 1}).remote(), start.options(num_cpus=0.1).remote()
    found = list(dispatch([homeless, here], lambda actor, n: actor.square.remote(n), range(5), "squares"))
    assert sorted(square for square, _ in found) == [n * n for n in range(5)]
    for actor in (homeless, here):
        ray.kill(actor)


def test_workers_that_never_come_are_one_sentence() -> None:
    start: Any = ray.remote(Squares)
    actor = start.options(resources={"nowhere": 1}).remote()
    told = r"squares: none of 1 workers was up within 1 s; the cluster has 4 CPUs and 0 GPUs"
    with pytest.raises(StageFailure, match=told):
        list(dispatch([actor], lambda a, n: a.square.remote(n), range(5), "squares", start_seconds=1))
    ray.kill(actor)


def test_a_piece_that_never_comes_is_one_sentence_and_ended(tmp_path: Path) -> None:
    asked: list[Any] = []

    def hang(mark: str) -> None:
        Path(mark).touch()
        while True:
            time.sleep(0.05)

    def start(_: None, number: int) -> Any:
        asked.append(ray.remote(hang).options(num_cpus=0.1, max_retries=0).remote(str(tmp_path / str(number))))
        return asked[-1]

    with pytest.raises(StageFailure, match="naps: no piece of work was finished within 8 s"):
        list(dispatch([None, None], start, range(5), "naps", piece_seconds=8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"], "more tasks than places"
    for reference in asked:
        with pytest.raises((TaskCancelledError, RayTaskError)):
            ray.get(reference, timeout=30)


def test_answers_that_never_come_are_one_sentence() -> None:
    def nap() -> None:
        time.sleep(30)

    slow = ray.remote(nap).options(num_cpus=0.1).remote()
    with pytest.raises(StageFailure, match="a nap: no answer within 1 s"):
        gather([slow], "a nap", 1)
    ray.cancel(slow, force=True)
    assert gather([ray.put(2), ray.put(1)], "numbers") == [2, 1]


def test_what_a_piece_raises_is_raised(pool: WorkerPool) -> None:
    with pytest.raises(UserError, match="five is not taken"):
        list(pool.run("refuse", ((n,) for n in range(10))))
    assert len(list(pool.run("refuse", [(1,), (2,)]))) == 2, "the pool cannot be used after a failure"
    with WorkerPool(Squares, (), 1, "squares", num_cpus=0.1) as one:
        with pytest.raises(UserError, match="five is not taken"):
            one.ask_all("refuse", 5)
        with pytest.raises(ray.exceptions.RayActorError):  # where not all can answer, the pool is ended
            one.ask_all("refuse", 1)


def test_an_iterator_that_waits_for_ever_has_limits_of_its_own() -> None:
    def slow(seconds: float) -> Iterator[int]:
        yield 1
        time.sleep(seconds)
        yield 2

    assert list(within_limits(slow(0), "numbers")) == [1, 2]
    with pytest.raises(StageFailure, match="numbers: no piece of work was finished within 1 s; the cluster has 4 CPUs"):
        list(within_limits(slow(30), "numbers", piece_seconds=1))
    with pytest.raises(StageFailure, match="numbers: no worker was up within 1 s"):
        list(within_limits(slow(30), "numbers", started=lambda: False, start_seconds=1))

    def failing() -> Iterator[int]:
        yield 1
        raise UserError("two is not there")

    taken = within_limits(failing(), "numbers")
    assert next(taken) == 1
    with pytest.raises(UserError, match="two is not there"):
        next(taken)


def test_what_is_read_of_an_iterator_within_limits_is_little_more_than_what_is_taken() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            read.append(number)
            yield number

    for taken, number in enumerate(within_limits(numbers(), "numbers")):
        assert number == taken
        assert len(read) <= taken + 4, "the thread runs ahead"


def test_training_workers_that_find_no_room_are_one_sentence(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "0.05")
    rows = [TrainingRow(str(i), f"question {i}", f"answer {i}", (), "faq") for i in range(8)]
    cfg = TrainEmbeddingConfig(steps=1, num_workers=50, batch_size=50)
    task = EmbeddingTask(cfg, tiny_qwen3, "<|endoftext|>", "find it", None)
    told = "no room for 50 training workers of 1 CPU at once within 3 s; the cluster has 4 CPUs"
    with pytest.raises(StageFailure, match=told):
        fit(TrainJob(task, {"faq": rows}, 0, str(tmp_path), 0))
