"""Events of a run: what is on storage after the moments that matter, and that nothing of it can end a stage."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from qwen3emb.core import events
from qwen3emb.core.artifact import Identity, StageResult, complete, start, state_of
from qwen3emb.core.errors import UserError
from qwen3emb.core.event_files import EVENTS, Attempt, all_events, events_of, trails
from qwen3emb.core.events import EventLog, current_attempt, note, recording, report, taking_part
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import paced
from qwen3emb.training.history import History

FIRST = "0123456789abcdef"
STEP = {"loss": 1.5, "tokens": 10.0, "rows": 4.0, "positive": 0.5, "hardest": 0.4, "lr": 1e-4, "skipped": 0.0}


def unheard(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


@pytest.fixture
def attempt(run: Storage) -> Attempt:
    return Attempt(run.uri, "mine", FIRST, 1, "20260101T000000000000Z")


def kinds(run: Storage) -> list[tuple[str, str, int]]:
    return [(event["stage"], event["event"], event["attempt"]) for event in all_events(run)]


def test_a_stage_that_fails_and_is_resumed_leaves_two_attempts(run: Storage) -> None:
    with (
        pytest.raises(UserError, match="no passages"),
        recording(run, "mine", FIRST, unheard) as record,
    ):
        record.begin()
        report("queries embedded", 3, 12)
        raise UserError("s3://user:secret@bucket/x: no passages")
    with recording(run, "mine", FIRST, unheard) as record:
        record.begin(resumed=True)
        report("queries embedded", 4, 12)
        report("queries embedded", 12, 12)
        record.finish("12 rows in, 11 out, rejected: 1 empty", rows_out=11)
    started, before, failed, resumed, after, ended = all_events(run)
    assert [e["event"] for e in (started, failed, resumed, ended)] == ["started", "failed", "resumed", "finished"]
    assert [e["attempt"] for e in all_events(run)] == [1, 1, 1, 2, 2, 2]
    assert failed["reason"] == "s3://***@bucket/x: no passages"
    assert (before["work"], before["done"], before["total"]) == ("queries embedded", 3, 12) and "rate" not in before
    assert after["done"] == 12 and after["rate"] > 0  # of its two reports only the newer one was due
    assert (ended["reason"], ended["rows_out"]) == ("12 rows in, 11 out, rejected: 1 empty", 11)
    assert {"time", "stage", "host", "seconds"} <= started.keys() and started["fingerprint"] == FIRST


def test_ctrl_c_is_an_end_and_a_stage_that_did_not_begin_has_no_events(run: Storage) -> None:
    with pytest.raises(KeyboardInterrupt), recording(run, "mine", FIRST, unheard) as record:
        record.begin()
        raise KeyboardInterrupt
    with pytest.raises(UserError), recording(run, "filter", FIRST, unheard):
        raise UserError("another driver has the folder")
    assert kinds(run) == [("mine", "started", 1), ("mine", "failed", 1)]
    assert all_events(run)[1]["reason"] == "interrupted; run the same command again to go on from here"


def test_replaced_output_leaves_its_events_and_begins_with_attempt_one(run: Storage) -> None:
    old, new = (Identity("mine", "0.1.0", {"seed": seed}, {}) for seed in (0, 1))
    folder = run / "mine"
    for what, resumed in ((old, False), (old, True), (new, False)):
        start(folder, what, replace=True)
        with recording(run, "mine", what.fingerprint, unheard) as record:
            record.begin(resumed)
    complete(folder, new, StageResult(1, 1), 1)
    assert kinds(run) == [("mine", "started", 1), ("mine", "resumed", 2), ("mine", "started", 1)]
    assert [t.attempt.fingerprint for t in trails(run)["mine"]][::2] == [old.fingerprint, new.fingerprint]
    assert state_of(folder, new) == "done" and not [name for name in folder.names() if EVENTS in name]


def test_processes_of_one_attempt_do_not_overwrite_each_other(run: Storage, attempt: Attempt) -> None:
    for _ in range(2):  # the second as after a lost worker
        with taking_part(attempt, unheard):
            assert current_attempt() == attempt
            note("resumed", reason="training goes on after step 20 of 60")
            report("rows trained", 1, 4)
    assert current_attempt() is None
    report("rows trained", 2, 4)  # of no stage
    [trail] = trails(run)["mine"]
    assert len(trail.files) == 2 and trail.attempt == attempt
    assert [e["event"] for e in events_of(run, trail)].count("progress") == 2


def test_progress_of_a_long_stage_stays_small_and_keeps_its_ends(
    run: Storage, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_MOST", 8)
    log = EventLog(attempt, unheard)
    for done in range(100):
        log.progress("queries", done, 99)
        log.add("resumed")  # makes a line of the progress before it
    log.close()
    found = events_of(run, trails(run)["mine"][0])
    done = [e["done"] for e in found if e["event"] == "progress"]
    assert len(done) <= 8 and done == sorted(done) and done[-1] == 99
    assert sum(e["event"] == "resumed" for e in found) == 100


def test_a_rate_counts_what_this_process_has_done(attempt: Attempt) -> None:
    heard: list[dict[str, object]] = []
    with taking_part(attempt, unheard, lambda _, event: heard.append(dict(event))):
        for done in (900, 901, 5):  # resumed at 900; then another round
            report("queries", done, 1000)
    assert [("rate" in event) for event in heard] == [False, True, False]


@pytest.mark.parametrize("blocked", [EVENTS, f"{EVENTS}/mine"])
def test_events_that_cannot_be_written_are_said_once_and_fail_nothing(
    run: Storage, attempt: Attempt, blocked: str
) -> None:
    run.write_bytes(blocked, b"a file where a folder should be")
    said: list[str] = []
    with recording(run, "mine", FIRST, said.append) as record:
        record.begin(resumed=True)
        for done in range(5):
            report("queries", done, 5)
            note("resumed")
        record.finish("done")
    assert sum("its events cannot be written" in line for line in said) == 1
    assert all(line.startswith("mine: ") for line in said)


def test_a_listener_that_raises_fails_nothing(run: Storage, attempt: Attempt) -> None:
    said: list[str] = []
    with taking_part(attempt, said.append, lambda *_: 1 / 0):
        report("queries", 1, 2)
        report("queries", 2, 2)
    assert len(said) == 1 and "ZeroDivisionError" in said[0]
    assert [e["done"] for e in all_events(run)] == [2]


def test_damaged_and_foreign_files_are_passed_over(run: Storage, attempt: Attempt) -> None:
    with taking_part(attempt, unheard):
        note("started")
    [file] = trails(run)["mine"][0].files
    run.write_bytes(file, run.read_bytes(file) + b'{"time": "2026-\n[]\n{"event": "progress"}\n')
    run.write_bytes(f"{EVENTS}/mine/notes.txt", b"mine")
    run.write_bytes(f"{EVENTS}/readme", b"mine")
    assert [e["event"] for e in all_events(run)] == ["started"]
    assert all_events(Storage(f"{run.uri}/nowhere")) == []


def test_what_reports_progress_reports_events(run: Storage, attempt: Attempt) -> None:
    history = History()
    with taking_part(attempt, unheard):
        progress = paced(lambda _: None, "mine: cooking: queries searched")
        for done in (1, 2, 3):
            progress(done, 3)
        for step in range(3):
            history.add(step, STEP, step + 1.0)
        history.validated(3, {"dev_ndcg@10": 0.5})
        history.show(30, force=True)
    searched, trained = all_events(run)
    assert (searched["work"], searched["done"], searched["total"]) == ("cooking: queries searched", 3, 3)
    assert (trained["work"], trained["done"], trained["total"]) == ("rows trained", 12, 120)
    figures = ("step", "loss", "tokens_per_second_per_worker", "dev_ndcg@10")
    assert [trained[key] for key in figures] == [3, 1.5, 10.0, 0.5]


def test_lines_are_json_and_from_any_thread(run: Storage, attempt: Attempt) -> None:
    with taking_part(attempt, unheard):
        workers = [threading.Thread(target=report, args=(f"ä {n}", 1, 2), kwargs={"loss": None}) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    [file] = trails(run)["mine"][0].files
    lines = [json.loads(line) for line in run.read_bytes(file).decode().splitlines()]
    assert {line["work"] for line in lines} == {f"ä {n}" for n in range(8)}
    assert all("loss" not in line for line in lines)
