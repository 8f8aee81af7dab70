"""Storage: atomic files, the same calls on every file system, fingerprints of inputs."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage, absolute_uri, external_fingerprint, input_uri

SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])


def table(*rows: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist([{"id": i, "n": n} for i, n in rows], schema=SCHEMA)


def test_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_bytes("a/b.bin", b"\x00\xff")
    run.write_json("a/c.json", {"text": "ä", "n": [1, 2]})
    assert run.read_bytes("a/b.bin") == b"\x00\xff"
    assert run.read_json("a/c.json") == {"text": "ä", "n": [1, 2]}
    assert (run / "a").read_bytes("b.bin") == b"\x00\xff"
    assert run.names() == ["a/b.bin", "a/c.json"]
    assert run.names("a", ".json") == ["a/c.json"]


def test_the_same_calls_work_through_a_uri(tmp_path: Path) -> None:
    run = Storage(f"file://{tmp_path}/run")
    run.write_json("x/artifact.json", {"a": 1})
    assert run.exists("x/artifact.json")
    assert Storage(str(tmp_path / "run")).read_json("x/artifact.json") == {"a": 1}


def test_writing_leaves_no_temporary_file_and_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    run.write_bytes("f", b"old")
    with pytest.raises(TypeError):
        run.write_bytes("f", object())  # type: ignore[arg-type]
    assert run.read_bytes("f") == b"old"
    run.write_bytes("f", b"new")
    assert run.read_bytes("f") == b"new"
    assert [name for name in os.listdir(tmp_path) if name == "f"] == ["f"]


def test_tables_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    run.write_table("rows/part-001.parquet", table(("c", 3)))
    run.write_table("rows/part-000.parquet", table(("a", 1), ("b", 2)))
    run.write_bytes("rows/notes.txt", b"no table")
    assert run.read_table("rows").to_pylist() == table(("a", 1), ("b", 2), ("c", 3)).to_pylist()
    assert run.read_table("rows/part-001.parquet").column("id").to_pylist() == ["c"]


def test_an_empty_folder_needs_a_schema(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    assert run.read_table("none", SCHEMA).schema == SCHEMA
    with pytest.raises(UserError, match="no Parquet files"):
        run.read_table("none")


def test_deleting_is_for_files_folders_and_nothing(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_bytes("a/b", b"")
    run.write_bytes("c", b"")
    run.delete("c")
    run.delete("a")
    run.delete("never there")
    assert run.names() == []


def test_upload_copies_a_folder_and_local_finds_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "w.bin").write_bytes(b"weights")
    run = Storage(str(tmp_path / "run"))
    run.upload(made, "model")
    assert (run.local("model") / "deep" / "w.bin").read_bytes() == b"weights"


def test_relative_paths_are_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("./runs/demo") == str(tmp_path / "runs" / "demo")
    assert absolute_uri("/x/y") == "/x/y"
    assert absolute_uri("s3://bucket/run") == "s3://bucket/run"


def test_a_ray_job_reads_uploaded_files_but_writes_no_results_into_its_temporary_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    (copy / "personas.jsonl").write_text("{}")
    monkeypatch.chdir(copy)
    assert absolute_uri("personas.jsonl") == str(copy / "personas.jsonl")
    try:
        place = absolute_uri("./runs/demo")
    except UserError as error:
        assert "absolute path" in str(error)
    else:
        assert not place.startswith(str(copy))


def test_a_ray_job_reads_the_folders_and_patterns_that_were_sent_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    (copy / "docs").mkdir(parents=True)
    monkeypatch.chdir(copy)
    for place in ("docs", "docs/*.md", "*.md"):
        assert input_uri(place) == str(copy / place)
    assert input_uri("s3://bucket/docs") == "s3://bucket/docs" and input_uri("/x/y") == "/x/y"
    monkeypatch.setattr(metadata, "distribution", _installed_from_an_index)
    for place in ("missing", "missing/*.md"):
        with pytest.raises(UserError, match=re.escape(f"{place}: not in the folder that was sent to the cluster")):
            input_uri(place)


def _installed_from_an_index(name: str) -> metadata.Distribution:
    raise metadata.PackageNotFoundError(name)


def test_a_fingerprint_follows_the_content_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "personas.jsonl"
    file.write_text("a")
    before = external_fingerprint(str(file))
    os.utime(file, (1, 1))
    assert external_fingerprint(str(file)) == before
    file.write_text("b")
    assert external_fingerprint(str(file)) != before


def test_a_fingerprint_of_a_folder_sees_names_and_sizes_of_the_chosen_files(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("x = 1")
    before = external_fingerprint(str(tmp_path), ".py")
    (tmp_path / "pkg" / "a.pyc").write_text("ignored")
    assert external_fingerprint(str(tmp_path), ".py") == before
    (tmp_path / "pkg" / "b.py").write_text("")
    added = external_fingerprint(str(tmp_path), ".py")
    (tmp_path / "pkg" / "a.py").write_text("x = 10")
    assert len({before, added, external_fingerprint(str(tmp_path), ".py")}) == 3


def test_a_missing_input_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        external_fingerprint(str(tmp_path / "nothing"))
