from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector, FileType, LocalFileSystem

from qwen3emb.config.data import SourceConfig
from qwen3emb.core.draws import chosen_by_hash
from qwen3emb.core.errors import UserError
from qwen3emb.corpus.sources import CorpusFile, corpus_files
from qwen3emb.text.files import list_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")


def python(path: Path | str, **options: int) -> SourceConfig:
    return SourceConfig(kind="python", path=str(path), **options)


def test_modules_are_named_below_the_source_and_sorted_by_path(tmp_path: Path) -> None:
    write(tmp_path, "pkg/__init__.py", "pkg/b.py", "a.py", "pkg/notes.txt", ".hidden/c.py")
    found = corpus_files([python(tmp_path)], seed=0)
    assert found == [
        CorpusFile(f"{tmp_path}/a.py", 0, "a", "a"),
        CorpusFile(f"{tmp_path}/pkg/__init__.py", 0, "pkg", "pkg"),
        CorpusFile(f"{tmp_path}/pkg/b.py", 0, "pkg.b", "pkg.b"),
    ]


def test_files_and_globs_are_named_below_what_comes_before_the_wildcard(tmp_path: Path) -> None:
    write(tmp_path, "one/a.py", "one/deep/b.py", "two/c.py")
    assert [f.module for f in corpus_files([python(tmp_path / "one/a.py")], 0)] == ["a"]
    assert [f.module for f in corpus_files([python(f"{tmp_path}/one/**/*.py")], 0)] == ["a", "deep.b"]
    assert [f.module for f in corpus_files([python(f"{tmp_path}/*/c.py")], 0)] == ["two.c"]


def test_a_folder_is_listed_as_its_file_system_lists_it(tmp_path: Path) -> None:
    place = tmp_path / "corpus"
    write(place, "a.py", "pkg/B.PY", "pkg/.git/c.py", ".d.py", "pkg/deep/e.py", "pkg/f.pyc", "odd.py/g.py")
    write(tmp_path, "elsewhere/h.py")
    (place / "linked").symlink_to(tmp_path / "elsewhere")
    (place / "link.py").symlink_to(tmp_path / "elsewhere/h.py")
    (place / "broken.py").symlink_to(tmp_path / "nowhere")
    entries = LocalFileSystem().get_file_info(FileSelector(str(place), recursive=True))
    names = [str(Path(entry.path).relative_to(place)) for entry in entries if entry.type == FileType.File]
    shown = [name for name in names if name.lower().endswith(".py") and not f"/{name}".count("/.")]
    assert list_files(str(place), "python") == sorted(f"{place}/{name}" for name in shown)
    assert {"linked/h.py", "link.py", "odd.py/g.py", "pkg/B.PY"} <= set(shown)


def test_relative_paths_are_those_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "src/a.py")
    monkeypatch.chdir(tmp_path)
    assert [f.path for f in corpus_files([python("src")], 0)] == [f"{tmp_path}/src/a.py"]


def test_clashing_names_get_the_source_in_front_and_keep_their_module(tmp_path: Path) -> None:
    write(tmp_path, "one/a.py", "one/b.py", "two/a.py", "two/a/__init__.py", "other/one/b.py")
    sources = [python(tmp_path / "one"), python(tmp_path / "two"), python(tmp_path / "other/one")]
    found = [(f.module, f.prefix) for f in corpus_files(sources, 0)]
    expected = [("a", "one:a"), ("b", "one:b"), ("a", "two:a"), ("a", "two:a~2"), ("b", "one:b~2")]
    assert sorted(found) == sorted(expected)


def test_prefixes_of_other_files_are_distinct_even_for_the_same_file_read_twice(tmp_path: Path) -> None:
    write(tmp_path, "d/x.csv", "d/y.csv")
    sources = [SourceConfig(kind="csv", path=str(tmp_path / "d"), text_field=name) for name in "ab"]
    found = corpus_files(sources, 0)
    assert [f.source for f in found] == [0, 0, 1, 1] and {f.module for f in found} == {""}
    assert [f.prefix for f in found] == ["d:x", "d:y", "d:x~2", "d:y~2"]
    assert [f.prefix for f in corpus_files(sources[:1], 0)] == ["x", "y"]


def test_max_files_is_per_source_and_does_not_depend_on_where_the_source_lies(tmp_path: Path) -> None:
    names = [f"m{i}.py" for i in range(30)]
    write(tmp_path / "one", *names)
    write(tmp_path / "two", *names)
    drawn = corpus_files([python(tmp_path / "one", max_files=7), python(tmp_path / "two", max_files=9)], 3)
    one, two = ([f.module for f in drawn if f.source == number] for number in (0, 1))
    assert (len(one), len(two)) == (7, 9) and set(one) < set(two)
    other = [f.module for f in corpus_files([python(tmp_path / "one", max_files=7)], 4)]
    assert other != one


def test_chosen_by_hash_ignores_order_and_grows_with_the_count() -> None:
    names = [f"name{i}" for i in range(100)]
    for count in range(0, 100, 9):
        assert len(chosen_by_hash(names, count, 1)) == count
        assert chosen_by_hash(names, count, 1) == chosen_by_hash(names[::-1], count, 1)
        assert chosen_by_hash(names, count, 1) < chosen_by_hash(names, count + 1, 1)
    assert chosen_by_hash(names, None, 1) == set(names) == chosen_by_hash(names, 200, 1)


def test_standard_library_without_tests_and_installed_packages() -> None:
    modules = {f.module for f in corpus_files([python("stdlib")], 0)}
    assert {"json.decoder", "json", "argparse", "unittest.mock"} <= modules
    unwanted = {"test", "tests", "idlelib", "site-packages"}
    assert not [m for m in modules if not unwanted.isdisjoint(m.split(".")[:-1])]


def test_installed_packages_without_their_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "pkg/core.py", "pkg/tests/test_core.py", "pkg/test/data.py", "testing.py")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    assert [f.module for f in corpus_files([python("site-packages")], 0)] == ["pkg.core", "testing"]


def test_a_source_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        corpus_files([python(tmp_path / "nowhere")], 0)
