"""`Storage` where files are not on this machine: every branch of it on a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qwen3emb.core.artifact import Identity, StageResult, complete, read_record, start, state_of
from qwen3emb.core.errors import UserError
from qwen3emb.core.event_files import all_events, trails
from qwen3emb.core.events import current_attempt, recording, report, taking_part
from qwen3emb.core.lease import LEASE, held, holder_of
from qwen3emb.core.storage import Storage, external_fingerprint
from qwen3emb.synthesis.personas import read_personas

WHAT = Identity("corpus", "0.1.0", {"seed": 0}, {})
OTHER = Identity("corpus", "0.1.0", {"seed": 1}, {})
SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])


@pytest.fixture
def folder(s3_here: None) -> Storage:
    """An empty folder of the bucket."""
    return Storage(f"s3://bucket/{uuid.uuid4().hex}?region=us-east-1")


def rows(*found: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist([{"id": i, "n": n} for i, n in found], schema=SCHEMA)


def test_files_come_back_as_they_were_written(folder: Storage) -> None:
    assert not folder.is_local
    folder.write_bytes("a/b.bin", b"\x00\xff")
    folder.write_json("a/c.json", {"text": "ä", "n": [1, 2]})
    folder.write_bytes("empty", b"")
    assert folder.read_bytes("a/b.bin") == b"\x00\xff"
    assert folder.read_json("a/c.json") == {"text": "ä", "n": [1, 2]}
    assert folder.read_bytes("empty") == b""
    assert folder.exists("a") and folder.exists("a/b.bin") and not folder.exists("a/b")
    assert folder.names() == ["a/b.bin", "a/c.json", "empty"]
    assert folder.names("a", ".json") == ["a/c.json"]
    assert folder.names("nowhere") == []
    assert folder.entries() == ["a", "empty"]
    assert (folder / "nowhere").entries() == []


def test_a_folder_below_is_another_folder_for_this_process_and_for_the_next(folder: Storage) -> None:
    (folder / "corpus").write_bytes("f", b"corpus")
    (folder / "weak").write_bytes("f", b"weak")
    assert folder.names() == ["corpus/f", "weak/f"]
    assert Storage((folder / "corpus").uri).read_bytes("f") == b"corpus"
    assert Storage((folder / "weak").uri).read_bytes("f") == b"weak"
    (folder / "weak").delete()
    assert folder.names() == ["corpus/f"]


@pytest.mark.parametrize("name", ["a b", "50% off?", "c#", "日本語", "a+b", "x=1&y=2"])
def test_odd_names_are_names(folder: Storage, name: str) -> None:
    (folder / name).write_bytes(name, b"x")
    assert folder.names() == [f"{name}/{name}"]
    assert Storage((folder / name).uri).read_bytes(name) == b"x"


def test_a_failed_write_leaves_the_old_content(folder: Storage) -> None:
    folder.write_bytes("f", b"old")
    with pytest.raises(TypeError):
        folder.write_bytes("f", object())  # type: ignore[arg-type]
    assert folder.read_bytes("f") == b"old"
    folder.write_bytes("f", b"new")
    assert folder.read_bytes("f") == b"new"
    assert folder.names() == ["f"]


def test_tables_and_their_parts(folder: Storage) -> None:
    folder.write_parts("rows", rows(("a", 1), ("b", 2), ("c", 3)), rows=2)
    folder.write_bytes("rows/notes.txt", b"no table")
    assert folder.names("rows", ".parquet") == ["rows/part-00000.parquet", "rows/part-00001.parquet"]
    assert folder.read_table("rows").to_pylist() == rows(("a", 1), ("b", 2), ("c", 3)).to_pylist()
    assert folder.read_table("rows/part-00001.parquet").column("id").to_pylist() == ["c"]
    assert folder.read_table("none", SCHEMA).schema == SCHEMA
    with pytest.raises(UserError, match=r"none.*no Parquet files"):
        folder.read_table("none")


def test_deleting_is_for_files_folders_and_nothing(folder: Storage) -> None:
    for name in ("a/b", "a/c/d", "e"):
        folder.write_bytes(name, b"x")
    folder.delete("e")
    folder.delete("a/c")
    folder.delete("never there")
    assert folder.names() == ["a/b"]
    folder.delete()
    assert folder.names() == [] and not folder.exists("a")


def test_a_folder_is_uploaded_and_fetched_whole_and_anew_when_it_changed(folder: Storage, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    weights = np.random.default_rng(0).bytes(7 << 20)  # more than one part of an upload
    (made / "deep" / "w.bin").write_bytes(weights)
    folder.upload(made, "model")
    first = folder.local("model")
    assert (first / "deep" / "w.bin").read_bytes() == weights
    assert folder.local("model") == first
    assert (folder / "model").local("deep") != first
    folder.write_bytes("model/deep/w.bin", b"others")
    second = folder.local("model")
    assert (second / "deep" / "w.bin").read_bytes() == b"others"
    assert (first / "deep" / "w.bin").read_bytes() == weights  # who reads the old one still does
    assert os.stat(first.parent).st_mode & 0o077 == 0
    assert not [entry for entry in os.listdir(first.parent) if entry.startswith(".partial")]


def test_a_record_is_reused_resumed_and_refused(folder: Storage) -> None:
    assert state_of(folder, WHAT) == "new"
    assert start(folder, WHAT) == "new"
    folder.write_bytes("rows/a", b"x")
    assert start(folder, WHAT) == "unfinished"
    complete(folder, WHAT, StageResult(1, 1, scratch=("rows",)), 1.0)
    assert start(folder, WHAT) == "done"
    assert read_record(folder)["rows_in"] == 1
    assert folder.names() == ["artifact.json", "started.json"]
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        start(folder, OTHER)
    folder.write_bytes("rows/b", b"x")
    assert start(folder, OTHER, replace=True) == "new"
    assert folder.names() == ["started.json"]
    assert state_of(folder, WHAT) == "different"


def test_inputs_have_fingerprints_and_are_read(folder: Storage) -> None:
    folder.write_bytes("in/p.jsonl", b'{"persona": "a baker"}\n')
    file, whole = (folder / "in/p.jsonl").uri, (folder / "in").uri
    before = external_fingerprint(file), external_fingerprint(whole)
    assert read_personas(file)[0] == ["a baker"]
    folder.write_bytes("in/p.jsonl", b'{"persona": "a hunter, say"}\n')
    assert external_fingerprint(file) != before[0]
    assert external_fingerprint(whole) != before[1]
    with pytest.raises(UserError, match="no such file"):
        external_fingerprint((folder / "nowhere").uri)
    with pytest.raises(UserError, match="no such file"):
        read_personas((folder / "nowhere.jsonl").uri)


HOLDER = """
import sys, time
from qwen3emb.core.lease import held
from qwen3emb.core.storage import Storage
with held(Storage(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_lease_on_s3_is_for_one_driver_and_the_dead_let_go(folder: Storage) -> None:
    command = [sys.executable, "-c", HOLDER, folder.uri]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout and first.stdout.readline() == "mine\n"
    with pytest.raises(UserError, match=f"process {first.pid} on "), held(folder, print):
        raise AssertionError("two drivers have the folder")
    first.kill()
    first.communicate()
    with held(folder, print) as mine:
        mine.check()
        assert folder.names() == [LEASE]
    assert folder.names() == []


def test_events_and_leases_on_s3_tell_where_a_stage_stands(folder: Storage) -> None:
    stage = folder / "mine"
    assert holder_of(stage) is None and all_events(folder) == []
    for resumed in (False, True):
        with recording(folder, "mine", "0123456789abcdef", print) as record, held(stage, print):
            record.begin(resumed)
            with taking_part(current_attempt(), print):
                report("queries embedded", 1, 2)
            holder = holder_of(stage)
            assert holder and not holder.ended and abs(time.time() - holder.renewed) < 600
            record.finish("done")
    assert holder_of(stage) is None
    first, second = trails(folder)["mine"]
    assert (first.attempt.number, second.attempt.number) == (1, 2)
    assert len(second.files) == 2 and abs(time.time() - second.written) < 600
    one = ["progress", "finished"]
    assert [event["event"] for event in all_events(folder)] == ["started", *one, "resumed", *one]
