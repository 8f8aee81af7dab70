"""A kill between any two changes of a stage's folder: what is left is never "done" with data missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from qwen3emb.core.artifact import Identity, StageResult, complete, start, state_of
from qwen3emb.core.storage import Storage

WHAT = Identity("corpus", "0.1.0", {"seed": 0}, {})
CHANGED = replace(WHAT, config={"seed": 1})
RESULT = StageResult(rows_in=5, rows_out=5)
DATA = ("a/rows-0", "a/rows-1", "z/rows-0", "z/done", "zz")


class Killed(BaseException):
    """The process ends here."""


class Breaking(pafs.FSSpecHandler):  # type: ignore[misc]
    """Files in memory; of a folder every file is a deletion of its own, as on S3, in this or the opposite order."""

    def __init__(self, allowed: int, backwards: bool) -> None:
        files = MemoryFileSystem(skip_instance_cache=True)
        files.store, files.pseudo_dirs = {}, [""]  # they are the class's otherwise
        super().__init__(files)
        self.left, self.backwards = allowed, backwards

    def _change(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def delete_file(self, path: str) -> None:
        self._change()
        super().delete_file(path)

    def delete_dir(self, path: str) -> None:
        below = sorted(self.fs.find(path), reverse=self.backwards)
        for file in below:
            self.delete_file(file)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._change()
        return super().open_output_stream(path, metadata)


def breaking_storage(allowed: int, backwards: bool = False) -> tuple[Storage, Breaking]:
    """A folder whose file system stops after `allowed` changes (-1: never), and its handler."""
    handler = Breaking(allowed, backwards)
    folder = object.__new__(Storage)
    folder.uri, folder.root, folder.filesystem = "memory://run/stage", "/run/stage", pafs.PyFileSystem(handler)
    return folder, handler


def written(backwards: bool, done: bool) -> tuple[Storage, Breaking]:
    folder, handler = breaking_storage(-1, backwards)
    start(folder, WHAT)
    for name in DATA:
        folder.write_bytes(name, b"x")
    if done:
        complete(folder, WHAT, RESULT, 1)
    return folder, handler


def kills(prepare: Callable[[], tuple[Storage, Breaking]], act: Callable[[Storage], object]) -> list[Storage]:
    """What a kill after 0, 1, 2, ... changes of `act` leaves, and last what `act` leaves when nothing stops it."""
    found, allowed = [], 0
    while True:
        folder, handler = prepare()
        handler.left = allowed
        try:
            act(folder)
        except Killed:
            handler.left = -1
            found.append(folder)
            allowed += 1
        else:
            handler.left = -1
            return [*found, folder]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("done", [True, False])
def test_a_kill_while_old_output_is_thrown_away_leaves_nothing_that_counts(done: bool, backwards: bool) -> None:
    left = kills(lambda: written(backwards, done), lambda folder: start(folder, CHANGED, replace=True))
    assert len(left) > len(DATA)
    for folder in left:
        missing = not all(folder.exists(name) for name in DATA)
        old, new = state_of(folder, WHAT), state_of(folder, CHANGED)
        assert new != "done" and (old != "done" or not missing)
        # A resumed stage takes what is there for what it wrote.
        assert not (missing and old == "unfinished")
        assert new != "unfinished" or not any(folder.exists(name) for name in DATA)
        # The same command again goes on, and the old configuration begins anew.
        assert start(folder, CHANGED, replace=True) in ("new", "unfinished")
        assert folder.names() == ["started.json"]
        assert state_of(folder, CHANGED) == "unfinished"


def test_what_was_being_thrown_away_is_so_without_asking_again() -> None:
    left = kills(lambda: written(False, True), lambda folder: start(folder, CHANGED, replace=True))
    folder = left[4]  # the record is gone, some of the rows are not
    assert state_of(folder, WHAT) == "new"
    assert start(folder, WHAT) == "new"
    assert folder.names() == ["started.json"]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_kill_at_the_end_keeps_what_a_resume_needs_until_the_record_is_there(backwards: bool) -> None:
    finished_with = replace(RESULT, scratch=("a", "z"))
    left = kills(lambda: written(backwards, False), lambda folder: complete(folder, WHAT, finished_with, 1))
    assert [state_of(folder, WHAT) for folder in left[:1]] == ["unfinished"]
    for folder in left:
        whole = all(folder.exists(name) for name in DATA)
        assert state_of(folder, WHAT) == "done" or whole
    assert left[-1].names() == ["artifact.json", "started.json", "zz"]
