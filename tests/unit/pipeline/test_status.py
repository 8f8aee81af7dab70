"""Where a run stands, from real files: leases of living, killed and silent drivers, events, and how a watch ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen3emb.cli.main import app
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.errors import StageFailure
from qwen3emb.core.event_files import Attempt, all_events
from qwen3emb.core.events import current_attempt, recording, report, taking_part
from qwen3emb.core.lease import LEASE, held
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline import status
from qwen3emb.pipeline.stages import STAGES, identity, is_enabled, stage_folder
from qwen3emb.pipeline.status import PIPELINE, RunWatch, StageStatus

DRIVER = """
import sys, time
from qwen3emb.core.artifact import start
from qwen3emb.core.events import recording, report
from qwen3emb.core.lease import held
from qwen3emb.config.run import load_config
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.stages import identity, stage_folder
cfg = load_config(sys.argv[1])
what, folder = identity(cfg, "corpus"), stage_folder(cfg, "corpus")
with recording(Storage(cfg.storage), "corpus", what.fingerprint, print) as record, held(folder, print):
    start(folder, what)
    record.begin()
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cfg(run_file: Path) -> RunConfig:
    return load_config(run_file)


@pytest.fixture
def killed(run_file: Path) -> Iterator[None]:
    """A driver of `corpus` that was killed."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(run_file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "mine\n"
    process.kill()
    process.communicate()
    yield


def call(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def stage(cfg: RunConfig, name: str, watch: RunWatch | None = None) -> StageStatus:
    return next(s for s in (watch or RunWatch(cfg)).look().stages if s.stage == name)


def done(cfg: RunConfig, name: str) -> None:
    folder, what = stage_folder(cfg, name), identity(cfg, name)
    start(folder, what, replace=True)
    complete(folder, what, StageResult(5, 4, {"empty": 1}), 2.5)


def failed(cfg: RunConfig, name: str) -> None:
    folder, what = stage_folder(cfg, name), identity(cfg, name)
    start(folder, what)
    with (
        pytest.raises(StageFailure),
        recording(Storage(cfg.storage), name, what.fingerprint, print) as record,
    ):
        record.begin()
        raise StageFailure("2 of 5 blocks were not written; run again to go on")


def foreign_lease(cfg: RunConfig, name: str, age: float) -> None:
    """A lease as a driver of another machine writes it, last renewed `age` seconds ago."""
    folder = stage_folder(cfg, name)
    folder.write_json(LEASE, {"token": "t", "machine": "another", "host": "far", "pid": 7, "since": "noon", "beat": 1})
    os.utime(folder.path(LEASE), (time.time() - age,) * 2)


def test_a_running_stage_has_progress_and_a_sign_of_life(cfg: RunConfig) -> None:
    folder, what = stage_folder(cfg, "corpus"), identity(cfg, "corpus")
    run = Storage(cfg.storage)
    with recording(run, "corpus", what.fingerprint, print) as record, held(folder, print):
        start(folder, what)
        record.begin()
        with taking_part(current_attempt(), print):  # whose end writes what was reported
            for files in (8, 10):
                report("files read", files, 40, rejected=1)
        found = stage(cfg, "corpus")
        assert RunWatch(cfg).look().ending is None
    assert (found.state, found.work, found.done, found.total) == ("running", "files read", 10, 40)
    assert found.rate and found.eta_seconds == pytest.approx(30 / found.rate, abs=0.1)
    assert (found.attempt, found.figures, found.reason) == (1, {"rejected": 1}, None)
    assert found.silent_seconds is not None and found.silent_seconds < 60


def test_a_failed_stage_tells_why_and_ends_the_watch_with_1(cfg: RunConfig, run_file: Path) -> None:
    failed(cfg, "corpus")
    found = stage(cfg, "corpus")
    assert (found.state, found.eta_seconds) == ("failed", None)
    code, out, err = call("status", str(run_file), "--watch")
    assert (code, err) == (1, "error: corpus: 2 of 5 blocks were not written; run again to go on\n")
    assert "failed" in next(line for line in out.splitlines() if "corpus" in line)
    assert call("status", str(run_file))[0] == 0
    done(cfg, "corpus")
    assert stage(cfg, "corpus").state == "done"


def test_a_killed_driver_of_this_machine_is_lost_at_once(cfg: RunConfig, run_file: Path, killed: None) -> None:
    found = stage(cfg, "corpus")
    assert found.state == "lost" and found.reason and "has ended without a word; run again to go on" in found.reason
    assert call("status", str(run_file), "--watch", "--json")[0] == 1


def test_a_silent_driver_elsewhere_is_lost_when_its_lease_is_over(
    cfg: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_lease(cfg, "corpus", age=60)
    assert stage(cfg, "corpus").state == "running"
    foreign_lease(cfg, "corpus", age=90)
    found = stage(cfg, "corpus")
    assert (found.state, found.host) == ("lost", "far")
    assert found.reason == "no sign of life of process 7 on far since noon for more than 75 s; run again to go on"
    assert RunWatch(cfg).look().ending is None  # the clocks may differ: first two of its beats must be missed here
    monkeypatch.setattr(status, "BEAT", 0.0)
    ending = RunWatch(cfg).look().ending
    assert ending and ending.failed and ending.sentence == f"corpus: {found.reason}"


def test_a_driver_whose_clock_is_hours_away_runs_as_long_as_it_renews_its_lease(cfg: RunConfig) -> None:
    watch = RunWatch(cfg)
    foreign_lease(cfg, "corpus", age=7200)
    assert stage(cfg, "corpus", watch).state == "lost"
    foreign_lease(cfg, "corpus", age=7185)
    assert stage(cfg, "corpus", watch).state == "running"
    foreign_lease(cfg, "corpus", age=-7200)
    assert stage(cfg, "corpus", watch).silent_seconds == 0


def test_events_of_a_folder_that_was_removed_or_replaced_are_not_shown(cfg: RunConfig, run_file: Path) -> None:
    failed(cfg, "corpus")
    other = load_config(run_file, ["corpus.max_tokens=99"])
    assert stage(other, "corpus").state == "different" and stage(other, "corpus").attempt is None
    stage_folder(cfg, "corpus").delete()
    found = stage(cfg, "corpus")
    assert (found.state, found.attempt, found.reason, found.silent_seconds) == ("new", None, None, None)
    assert len(all_events(Storage(cfg.storage))) == 2


def pipeline(cfg: RunConfig, began: str, *events: str) -> None:
    """An attempt at the pipeline that began at a time of its own."""
    attempt = Attempt(Storage(cfg.storage).uri, PIPELINE, PIPELINE, 1, began)
    with taking_part(attempt, print) as log:
        assert log
        for event in events:
            log.add(event, reason=f"the pipeline has {event}")


def test_a_pipeline_that_is_over_ends_the_watch_though_stages_are_left(cfg: RunConfig, run_file: Path) -> None:
    done(cfg, "corpus")
    assert RunWatch(cfg).look().ending is None  # nothing runs, and nothing has been tried
    failed(cfg, "synthesize")
    pipeline(cfg, "20990101T000000000000Z", "started")  # after that failure
    assert RunWatch(cfg).look().ending is None
    pipeline(cfg, "20990101T000000000000Z", "finished")
    code, out, _ = call("status", str(run_file), "--watch")
    assert code == 0 and out.splitlines()[-1] == "the pipeline has finished"
    pipeline(cfg, "20990102T000000000000Z", "started", "failed")
    code, _, err = call("status", str(run_file), "--watch")
    assert (code, err) == (1, "error: the pipeline has failed\n")


def test_a_failure_after_the_pipeline_began_is_named(cfg: RunConfig) -> None:
    pipeline(cfg, "20000101T000000000000Z", "started", "failed")
    failed(cfg, "corpus")
    ending = RunWatch(cfg).look().ending
    assert ending and ending.sentence.startswith("corpus: 2 of 5 blocks")


def test_a_finished_run_ends_the_watch_with_0(cfg: RunConfig, run_file: Path) -> None:
    for name in (name for name in STAGES if is_enabled(cfg, name)):
        done(cfg, name)
    code, out, _ = call("status", str(run_file), "--watch")
    assert code == 0 and out.splitlines()[-1] == "every stage is done"
    code, out, err = call("status", str(run_file), "--watch", "--json")
    [look] = map(json.loads, out.splitlines())
    assert (code, err) == (0, "every stage is done\n")
    assert look["ending"] == {"failed": False, "sentence": "every stage is done"}
    assert {s["state"] for s in look["stages"]} == {"done"}


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_watch_alone_and_without_a_word(run_file: Path) -> None:
    command = [sys.executable, "-m", "qwen3emb.cli", "status", str(run_file), "--watch", "--json", "--every", "0.1"]
    pipe = subprocess.PIPE
    # As from a terminal: a test run in the background has SIGINT ignored, which children inherit.
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=interruptible)
    assert process.stdout and json.loads(process.stdout.readline())["ending"] is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_all_events_are_lines_of_json(cfg: RunConfig, run_file: Path) -> None:
    failed(cfg, "corpus")
    code, out, _ = call("status", str(run_file), "--events")
    assert code == 0 and [json.loads(line)["event"] for line in out.splitlines()] == ["started", "failed"]
    assert call("status", str(run_file), "--events", "--watch")[0] == 2
