"""Sources outside a run: a changed file shows, a touched one does not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qwen3emb.core import storage
from qwen3emb.core.errors import UserError
from qwen3emb.text.sources import source_fingerprint


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("one")
    (tmp_path / "texts" / "deep" / "b.txt").write_text("two")
    (tmp_path / "texts" / "c.md").write_text("three")
    return tmp_path / "texts"


@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*.txt", "/a.txt"])
def test_an_edit_of_the_same_size_shows_and_a_touch_does_not(texts: Path, pattern: str) -> None:
    place = f"{texts}{pattern}"
    before = source_fingerprint(place, "text")
    os.utime(texts / "a.txt", (1, 1))
    assert source_fingerprint(place, "text") == before
    (texts / "a.txt").write_text("eno")
    assert source_fingerprint(place, "text") != before


def test_only_what_the_source_reads_counts(texts: Path) -> None:
    before = source_fingerprint(str(texts), "text")
    (texts / "c.md").write_text("other")
    (texts / ".hidden.txt").write_text("other")
    assert source_fingerprint(str(texts), "text") == before
    (texts / "new.txt").write_text("")
    assert source_fingerprint(str(texts), "text") != before


def test_a_renamed_file_shows_and_a_moved_folder_does_not(texts: Path) -> None:
    before = source_fingerprint(str(texts), "text"), source_fingerprint(f"{texts}/**/*.txt")
    moved = texts.rename(texts.parent / "elsewhere")
    assert (source_fingerprint(str(moved), "text"), source_fingerprint(f"{moved}/**/*.txt")) == before
    (moved / "a.txt").rename(moved / "d.txt")
    assert source_fingerprint(str(moved), "text") != before[0]
    assert source_fingerprint(f"{moved}/**/*.txt") != before[1]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(texts: Path) -> None:
    (texts / "what?.jsonl").write_text("1")
    (texts / "whats.jsonl").write_text("2")
    before = source_fingerprint(f"{texts}/what?.jsonl")
    (texts / "whats.jsonl").write_text("3")
    assert source_fingerprint(f"{texts}/what?.jsonl") == before
    (texts / "what?.jsonl").write_text("3")
    assert source_fingerprint(f"{texts}/what?.jsonl") != before


@pytest.mark.parametrize("limit", ["_HASHED_FILE", "_HASHED_FOLDER"])
def test_what_is_too_large_to_be_read_goes_by_size_and_time(
    texts: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(storage, limit, 2)
    place = str(texts / "a.txt") if limit == "_HASHED_FILE" else str(texts)
    before = source_fingerprint(place)
    assert source_fingerprint(place) == before
    os.utime(texts / "a.txt", (1, 1))
    assert source_fingerprint(place) != before


def test_nothing_there_is_the_users_mistake(texts: Path) -> None:
    for place in (f"{texts}/none", f"{texts}/*.csv", f"{texts}/none/*.txt"):
        with pytest.raises(UserError):
            source_fingerprint(place)
    assert source_fingerprint("hf://datasets/a/b/*.parquet") == "hf://datasets/a/b/*.parquet"


def test_tens_of_thousands_of_installed_files_are_looked_at_in_seconds() -> None:
    began = time.monotonic()
    assert source_fingerprint("site-packages", "python") != source_fingerprint("stdlib", "python")
    assert time.monotonic() - began < 30
