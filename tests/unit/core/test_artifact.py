"""Completion records: reuse, resume, refuse, and no row lost in the books."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3emb.core.artifact import Identity, StageResult, complete, finished, read_record, start, state_of
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.storage import Storage

WHAT = Identity("corpus", "0.1.0", {"corpus": {"max_tokens": 64, "sources": ["a"]}, "seed": 0}, {"a": "f00d"})
RESULT = StageResult(rows_in=5, rows_out=3, rejected={"empty": 1, "too_long": 1}, metrics={"x": 0.5})


def other(**config: object) -> Identity:
    return replace(WHAT, config={**WHAT.config, **config})


def test_a_stage_goes_from_new_to_unfinished_to_done(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "corpus"))
    assert state_of(folder, WHAT) == "new"
    assert start(folder, WHAT) == "new"
    assert start(folder, WHAT) == "unfinished"
    assert not finished(folder)
    complete(folder, WHAT, RESULT, 1.234)
    assert start(folder, WHAT) == "done"
    record = read_record(folder)
    assert (record["rows_in"], record["rows_out"], record["rejected"]) == (5, 3, RESULT.rejected)
    assert (record["metrics"], record["seconds"], record["inputs"]) == ({"x": 0.5}, 1.23, {"a": "f00d"})
    assert record["fingerprint"] == WHAT.fingerprint


@pytest.mark.parametrize("done", [True, False])
def test_output_of_another_configuration_is_refused_and_what_differs_is_named(tmp_path: Path, done: bool) -> None:
    folder = Storage(str(tmp_path / "corpus"))
    start(folder, WHAT)
    folder.write_bytes("rows.parquet", b"old")
    if done:
        complete(folder, WHAT, RESULT, 1)
    changed = other(corpus={"max_tokens": 128, "sources": ["a"]})
    assert state_of(folder, changed) == "different"
    with pytest.raises(UserError, match=r"max_tokens: 64 -> 128.*--replace") as caught:
        start(folder, changed)
    assert WHAT.fingerprint in str(caught.value)
    assert changed.fingerprint in str(caught.value)
    assert folder.read_bytes("rows.parquet") == b"old"


def test_replace_throws_the_old_output_away(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "corpus"))
    start(folder, WHAT)
    folder.write_bytes("rows.parquet", b"old")
    complete(folder, WHAT, RESULT, 1)
    changed = other(seed=1)
    assert start(folder, changed, replace=True) == "new"
    assert not folder.exists("rows.parquet")
    assert state_of(folder, changed) == "unfinished"


def test_replace_keeps_output_of_the_same_configuration(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "corpus"))
    start(folder, WHAT)
    complete(folder, WHAT, RESULT, 1)
    assert start(folder, WHAT, replace=True) == "done"


@pytest.mark.parametrize(
    "changed",
    [
        replace(WHAT, stage="mine"),
        replace(WHAT, version="0.2.0"),
        replace(WHAT, inputs={"a": "beef"}),
        other(seed=1),
    ],
)
def test_everything_of_an_identity_is_in_its_fingerprint(changed: Identity) -> None:
    assert changed.fingerprint != WHAT.fingerprint


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    backwards = replace(WHAT, config=dict(reversed(WHAT.config.items())))
    assert backwards.fingerprint == WHAT.fingerprint


@pytest.mark.parametrize("rows_in", [4, 6])
def test_an_unaccounted_row_fails_the_stage(tmp_path: Path, rows_in: int) -> None:
    folder = Storage(str(tmp_path / "corpus"))
    start(folder, WHAT)
    with pytest.raises(StageFailure, match="unaccounted"):
        complete(folder, WHAT, replace(RESULT, rows_in=rows_in), 1)
    assert state_of(folder, WHAT) == "unfinished"


def test_reading_an_unfinished_stage_says_which_to_run(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "corpus"))
    start(folder, WHAT)
    with pytest.raises(UserError, match="corpus: not complete"):
        read_record(folder)


KILLED = """
import os, signal, sys
from qwen3emb.core.artifact import start
from qwen3emb.core.storage import Storage
sys.path.insert(0, {tests!r})
from test_artifact import WHAT
folder = Storage({folder!r})
start(folder, WHAT)
folder.write_bytes("rows-0.parquet", b"kept")
open(folder.path("artifact.json.tmp-1"), "w").write('{{"finge')   # as if killed while writing the record
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_stage_is_unfinished_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "corpus"))
    done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), check=False)
    assert done.returncode == -signal.SIGKILL
    folder = Storage(str(tmp_path / "corpus"))
    assert start(folder, WHAT) == "unfinished"
    assert folder.read_bytes("rows-0.parquet") == b"kept"
