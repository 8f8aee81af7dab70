"""Two drivers and one folder, as real processes: one writes, the other is told who has it, the dead let go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen3emb.config.run import load_config
from qwen3emb.core import lease
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.lease import LEASE, held
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.stages import identity, stage_folder

DRIVER = """
import sys, time
from qwen3emb.core import lease
from qwen3emb.core.exits import guarded
from qwen3emb.core.storage import Storage
folder, seconds, lease.BEAT, lease.EXPIRY = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
def body():
    with lease.held(Storage(folder), print):
        print("mine", flush=True)
        time.sleep(seconds)
    print("let go", flush=True)
sys.exit(guarded(body, False))
"""


def driver(folder: Path, seconds: float, beat: float = 15, expiry: float = 75) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(folder), *map(str, (seconds, beat, expiry))]
    # As from a terminal: a test run in the background has SIGINT ignored, which children inherit.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
    )


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def first(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver that has the folder."""
    process = driver(tmp_path, 60)
    assert process.stdout and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_driver_is_told_at_once_who_has_the_folder(tmp_path: Path, first: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    second = driver(tmp_path, 0)
    said = second.communicate(timeout=60)
    assert second.returncode == UserError.exit_code
    assert time.monotonic() - began < 10
    assert said[0] == ""
    assert f"process {first.pid} on " in said[1] and " since 20" in said[1] and "expires at " in said[1]
    assert len(said[1].strip().splitlines()) == 1
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == first.pid


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_folder_whose_driver_is_gone_is_free_at_once(
    tmp_path: Path, first: subprocess.Popen[str], ended: signal.Signals
) -> None:
    first.send_signal(ended)
    if ended != signal.SIGKILL:
        first.wait()  # else it stays as a zombie, which no longer writes either
    second = driver(tmp_path, 0)
    said = second.communicate(timeout=60)
    assert (second.returncode, said[0]) == (0, "mine\nlet go\n"), said[1]
    assert not (tmp_path / LEASE).exists()


def test_of_many_that_start_together_one_has_the_folder(tmp_path: Path) -> None:
    together = [driver(tmp_path, 3) for _ in range(5)]
    codes = [process.wait(timeout=120) for process in together]
    held_it = [process.stdout.read().count("mine") for process in together if process.stdout]
    for process in together:
        for stream in (process.stdout, process.stderr):
            assert stream
            stream.close()
    # One after another is fine where the machine was slow to start them; at the same time is not.
    assert sum(held_it) >= 1 and codes.count(0) == sum(held_it)
    assert set(codes) <= {0, UserError.exit_code}
    assert sum(held_it) == 1 or max(codes) == 0


def elsewhere(folder: Path, **more: Any) -> dict[str, Any]:
    """The lease of a driver on another machine."""
    content = {
        "token": "t",
        "host": "far",
        "machine": "far",
        "pid": 1,
        "started": "1",
        "since": "2026-01-01",
        "beat": 0,
    }
    (folder / LEASE).write_text(json.dumps(content | more))
    return content | more


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "EXPIRY", 1.0)


def test_a_driver_elsewhere_that_shows_life_keeps_its_folder(tmp_path: Path, quick: None) -> None:
    elsewhere(tmp_path)
    alive = threading.Timer(0.3, lambda: elsewhere(tmp_path, beat=1))
    alive.start()
    said: list[str] = []
    with pytest.raises(UserError, match="process 1 on far since 2026"), held(Storage(str(tmp_path)), said.append):
        raise AssertionError("two drivers have the folder")
    alive.join()
    assert len(said) == 1 and "waiting" in said[0]
    assert json.loads((tmp_path / LEASE).read_text())["token"] == "t"


def test_a_driver_elsewhere_that_shows_none_loses_its_folder_whatever_the_clocks_say(
    tmp_path: Path, quick: None
) -> None:
    elsewhere(tmp_path, since="2199-01-01")
    os.utime(tmp_path / LEASE, (time.time() + 9e6, time.time() + 9e6))
    began = time.monotonic()
    with held(Storage(str(tmp_path)), lambda _: None):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()
    assert 1.0 <= time.monotonic() - began < 10
    assert not (tmp_path / LEASE).exists()


def test_a_process_id_that_was_given_again_is_not_the_driver(tmp_path: Path) -> None:
    mine = lease._myself()
    elsewhere(tmp_path, **mine | {"started": "12"})
    with held(Storage(str(tmp_path)), lambda _: None):
        pass


@pytest.mark.parametrize("taken", [True, False])
def test_a_driver_that_lost_its_folder_stops_and_leaves_it_alone(tmp_path: Path, quick: None, taken: bool) -> None:
    began = time.monotonic()
    said = "taken over by process 1 on far" if taken else "its lease.json was removed or damaged"
    with pytest.raises(StageFailure, match=said), held(Storage(str(tmp_path)), lambda _: None) as mine:
        if taken:
            elsewhere(tmp_path)
        else:
            (tmp_path / LEASE).unlink()  # by hand, or another took over, finished and let go
        time.sleep(30)
    assert time.monotonic() - began < 20
    assert mine.lost
    assert (tmp_path / LEASE).exists() == taken


def test_a_lost_lease_is_seen_before_the_record_is_written(tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="process 1 on far"), held(Storage(str(tmp_path)), lambda _: None) as mine:
        elsewhere(tmp_path)
        mine.check()


def test_showing_life_keeps_the_folder_for_longer_than_the_expiry(tmp_path: Path, quick: None) -> None:
    with held(Storage(str(tmp_path)), lambda _: None) as mine:
        before = json.loads((tmp_path / LEASE).read_text())
        time.sleep(1.5)
        after = json.loads((tmp_path / LEASE).read_text())
        mine.check()
        assert after["beat"] > before["beat"] and after["token"] == before["token"]


def test_a_stage_is_refused_before_ray_starts_while_another_driver_writes_it(run_file: Path) -> None:
    folder = stage_folder(load_config(run_file), "corpus")
    command = [sys.executable, "-m", "jobs.corpus", "--config", str(run_file)]
    with held(folder, lambda _: None):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == UserError.exit_code
    assert f"is being written by process {os.getpid()}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    # What is done is read by any number.
    cfg = load_config(run_file)
    start(folder, identity(cfg, "corpus"))
    complete(folder, identity(cfg, "corpus"), StageResult(1, 1), 1.0)
    with held(folder, lambda _: None):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "corpus: reused" in done.stderr


def test_replacing_keeps_the_lease(run_file: Path) -> None:
    folder = stage_folder(load_config(run_file), "corpus")
    start(folder, identity(load_config(run_file), "corpus"))
    folder.write_bytes("rows", b"x")
    with held(folder, lambda _: None) as mine:
        assert start(folder, identity(load_config(run_file, ["seed=1"]), "corpus"), replace=True) == "new"
        mine.check()
        assert folder.names() == [LEASE, "started.json"]
    assert folder.names() == ["started.json"]


DAMAGED = [b"", b"{", b"\xff\xfe\x00", b'{"token":"\xe9"}', b"\x00" * 100, b"[" * 100000, b"[1]", b"null", b"5", b"{}"]
DAMAGED += [b'{"token": null}', b"1" * 5000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_lease_is_nobodys_and_the_holders_is_written_again(
    tmp_path: Path, quick: None, content: bytes
) -> None:
    (tmp_path / LEASE).write_bytes(content)
    with held(Storage(str(tmp_path)), lambda _: None) as mine:
        token = json.loads((tmp_path / LEASE).read_text())["token"]
        (tmp_path / LEASE).write_bytes(content)
        mine.check()
        time.sleep(0.4)
        assert json.loads((tmp_path / LEASE).read_text())["token"] == token and not mine.lost
    assert not (tmp_path / LEASE).exists()


def test_a_folder_in_place_of_the_lease_is_named(tmp_path: Path, quick: None) -> None:
    with (
        pytest.raises(StageFailure, match=r"its lease\.json was removed or damaged"),
        held(Storage(str(tmp_path)), lambda _: None),
    ):
        (tmp_path / LEASE).unlink()
        (tmp_path / LEASE / "x").mkdir(parents=True)
        time.sleep(20)
    with (
        pytest.raises(UserError, match=r"lease\.json.* is a folder; remove it"),
        held(Storage(str(tmp_path)), lambda _: None),
    ):
        raise AssertionError("held without a lease")


@pytest.mark.parametrize("pid", [None, "abc", -1, 10**30, 1.5, True, [], "missing"])
def test_a_lease_of_this_machine_without_a_process_id_is_free(tmp_path: Path, pid: Any) -> None:
    elsewhere(tmp_path, **lease._myself() | {"pid": pid, "started": ""})
    if pid == "missing":
        (tmp_path / LEASE).write_text(json.dumps({"token": "x", "machine": lease._machine()}))
    with held(Storage(str(tmp_path)), lambda _: None):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()


def test_whatever_ends_the_signs_of_life_ends_the_stage(tmp_path: Path, quick: None) -> None:
    began = time.monotonic()
    with pytest.raises(StageFailure, match="showed no life"), held(Storage(str(tmp_path)), lambda _: None) as mine:
        mine._content["beat"] = "no number"  # adding to it is a TypeError
        time.sleep(30)
    assert mine.lost and time.monotonic() - began < 20
