"""Which files a corpus is read from, which module each Python file is, and what its ids begin with."""

from __future__ import annotations

import posixpath
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3emb.config.data import SourceConfig
from qwen3emb.core.draws import chosen_by_hash
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import input_uri
from qwen3emb.corpus.python_source import module_name
from qwen3emb.text.files import file_prefixes, list_files

__all__ = ["CorpusFile", "corpus_files"]

_INSTALLED = {"stdlib": "stdlib", "site-packages": "purelib"}  # word of the config -> name in sysconfig
_TEST_FOLDERS = {"test", "tests"}
_NOT_STDLIB = {"site-packages", "dist-packages", "idlelib"}


@dataclass(frozen=True)
class CorpusFile:
    """One file to read.

    Attributes:
        path: absolute path or URI.
        source: index of its source in `corpus.sources`, from 0.
        module: dotted module name of a Python file, which decides its split; "" for other kinds.
        prefix: what its ids begin with; no other file of the corpus has the same.
    """

    path: str
    source: int
    module: str
    prefix: str


def corpus_files(sources: Sequence[SourceConfig], seed: int) -> list[CorpusFile]:
    """The files of all sources, in the order of the sources and of their names.

    `max_files` of a source is applied here, by a hash of the file's name below the source. A Python file's
    prefix is its module name, another file's is its path below its source without suffixes; where two files
    would have the same, the name of the source comes before it ("site-packages:typing_extensions").

    Raises:
        UserError: a source names no files.
    """
    files: list[CorpusFile] = []
    labels: list[str] = []
    for number, source in enumerate(sources):
        root, paths = _source_files(source, seed)
        prefixes = {} if source.kind == "python" else file_prefixes(paths)
        label = source.path if source.path in _INSTALLED else posixpath.basename(root)
        for path in paths:
            module = module_name(_plain(path), root) if source.kind == "python" else ""
            files.append(CorpusFile(path, number, module, module or prefixes[path]))
            labels.append(label)
    names = _distinct([file.prefix for file in files], labels)
    return [CorpusFile(file.path, file.source, file.module, name) for file, name in zip(files, names, strict=True)]


def _source_files(source: SourceConfig, seed: int) -> tuple[str, list[str]]:
    """(root that names are relative to, sorted paths) of one source."""
    word = source.path if source.kind == "python" and source.path in _INSTALLED else None
    place = sysconfig.get_paths()[_INSTALLED[word]] if word else input_uri(source.path)
    paths = list_files(place, source.kind)
    root = _root(place, paths)
    relative = {path: _plain(path)[len(root) :].lstrip("/") for path in paths}
    if word:
        paths = [path for path in paths if not _left_out(word, relative[path])]
    if not paths:
        raise UserError(f"corpus source {source.path}: no {source.kind} files there")
    kept = chosen_by_hash((relative[path] for path in paths), source.max_files, seed)
    return root, [path for path in paths if relative[path] in kept]


def _left_out(word: str, relative: str) -> bool:
    folders = relative.split("/")[:-1]
    if word == "stdlib" and folders and folders[0] in _NOT_STDLIB:
        return True
    return not _TEST_FOLDERS.isdisjoint(folders)


def _root(place: str, paths: Sequence[str]) -> str:
    """The folder of a source: itself, or what comes before its file name or first wildcard."""
    base = _plain(place).rstrip("/")
    if all(_plain(path).startswith(base + "/") for path in paths):
        return base
    parts = base.split("/")
    wild = (i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
    return "/".join(parts[: next(wild, len(parts) - 1)])


def _plain(path: str) -> str:
    """A URI without its options (`s3://bucket/a.py?region=x`); a path as it is."""
    return path.partition("?")[0] if "://" in path else path


def _distinct(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    counts = Counter(names)
    longer = [name if counts[name] == 1 else f"{label}:{name}" for name, label in zip(names, labels, strict=True)]
    seen: Counter[str] = Counter()
    distinct = []
    for name in longer:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return distinct
