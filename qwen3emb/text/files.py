"""Which files an input names: a file, a directory or a glob, on a local disk or behind a URI."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs as pafs

from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.core.location import checked_place

__all__ = ["SUFFIXES", "file_prefixes", "first_line", "list_files", "reached", "resolve"]

_HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "botocore"}

COMPRESSED = (".gz", ".zst", ".bz2")

SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "markdown": (".md", ".markdown"),
    "text": (".txt", ".text"),
    "python": (".py",),
}
"""The suffixes that a directory is searched for, per kind; jsonl, csv, tsv and text also compressed."""


def resolve(path_or_uri: str, filesystem: pafs.FileSystem | None = None) -> tuple[pafs.FileSystem, str]:
    """The file system and the path within it; a plain path is local, and `filesystem` wins where given.

    Raises UserError for a URI whose scheme or form pyarrow does not know.
    """
    if filesystem is not None:
        return filesystem, path_or_uri
    if not _is_uri(checked_place(path_or_uri)):
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path_or_uri))
    try:
        system, path = pafs.FileSystem.from_uri(path_or_uri)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"{path_or_uri} is not a URI that can be opened ({first_line(error)}).") from error
    return system, str(path)


def list_files(uri: str, kind: str, filesystem: pafs.FileSystem | None = None) -> list[str]:
    """The files that `uri` names, sorted, each as `read_file` takes it (URIs stay URIs).

    A file is itself and a glob (`*`, `**`, `?`, `[ab]`; `?` only in plain paths) is all that matches,
    whatever their suffixes; a directory is searched recursively by the suffixes of `kind`, hidden names
    left out. Raises UserError where nothing is found or the kind is unknown.
    """
    if kind not in SUFFIXES:
        raise UserError(f"unknown kind {kind!r} for {uri}; use one of {', '.join(SUFFIXES)}.")
    base, pattern = _split_glob(uri)
    system, path = resolve(base or ".", filesystem)
    try:
        info = _info(system, path, uri)
        names = _search(system, info, pattern, kind)
    except OSError as error:
        kind_of_error = NotThere if _is_uri(uri) else UserError  # of a URI it is the connection or the permissions
        raise kind_of_error(f"{uri} cannot be listed ({first_line(error)}).") from error
    if info.type == pafs.FileType.File and pattern is None:
        return [uri]
    if not names:
        wanted = "matching files" if pattern is not None else " or ".join(SUFFIXES[kind]) + " files"
        problem = "does not exist" if info.type == pafs.FileType.NotFound else f"holds no {wanted}"
        raise NotThere(f"{uri} {problem}; give a {kind} file, a directory of them, or a glob.")
    return sorted(_join(base, names))


def _info(system: pafs.FileSystem, path: str, uri: str) -> pafs.FileInfo:
    try:
        return system.get_file_info([path])[0]
    except ValueError as error:  # huggingface_hub, for a malformed name
        raise UserError(f"{uri} is not a URI that can be opened ({first_line(error)}).") from error


def file_prefixes(files: Sequence[str]) -> dict[str, str]:
    """A prefix for the default ids of each file, distinct for distinct files.

    It is the path below the files' common directory without suffixes (one file: its stem), or with
    them where two files differ by nothing else.
    """
    paths = [name.partition("?")[0] if _is_uri(name) else name for name in files]
    folders = [path.split("/")[:-1] for path in paths]
    depth = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
    relative = ["/".join(path.split("/")[depth:]) for path in paths]
    bare = [_strip_suffixes(name) for name in relative]
    counts = Counter(bare)
    return {
        name: (short if counts[short] == 1 else full) for name, short, full in zip(files, bare, relative, strict=True)
    }


def _strip_suffixes(name: str) -> str:
    """`name` without a compression suffix and the suffix before it: "a/corpus.jsonl.gz" is "a/corpus"."""
    stem, suffix = posixpath.splitext(name)
    return posixpath.splitext(stem)[0] if suffix in COMPRESSED else stem


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


_Item = TypeVar("_Item")


def reached(items: Iterator[_Item], uri: str) -> Iterator[_Item]:
    """Yield `items`, which are read from `uri`; an error of a remote file system is raised as `NotThere`.

    Only a URI is remote. An error that is not a file system's is a fault of this program, and is raised as it is.
    """
    try:
        yield from items
    except Exception as error:
        if not (_is_uri(uri) and _of_file_system(error)):
            raise
        raise NotThere(f"{uri} cannot be reached ({type(error).__name__}: {first_line(error)})") from error


def _of_file_system(error: Exception) -> bool:
    """Whether an error is what file systems raise: OSError (pyarrow, huggingface_hub), or their HTTP library's.

    Errors of HTTP libraries are recognised by their module, since fsspec's file systems use different ones: httpx's
    ConnectError and aiohttp's ClientPayloadError are no OSError.
    """
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not modules.isdisjoint(_HTTP_LIBRARIES)


def _is_uri(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def _split_glob(uri: str) -> tuple[str, str | None]:
    """The part of `uri` before its first component with a wildcard, and the rest (None: no wildcard)."""
    is_uri = _is_uri(uri)
    if not is_uri and os.path.exists(os.path.expanduser(uri)):
        return uri, None
    path, mark, query = uri.partition("?") if is_uri else (uri, "", "")
    parts = path.split("/")
    wild = [i for i, part in enumerate(parts) if re.search(r"[*\[]" if is_uri else r"[*?\[]", part)]
    if not wild:
        return uri, None
    base = "/".join(parts[: wild[0]])
    return (base or "/" * path.startswith("/")) + mark + query, "/".join(parts[wild[0] :])


def _search(system: pafs.FileSystem, info: pafs.FileInfo, pattern: str | None, kind: str) -> list[str]:
    """Paths below the directory `info`, relative to it, of the files that match."""
    if info.type != pafs.FileType.Directory:
        return []
    if pattern is not None:
        names = _names(system, info.path, deep="/" in pattern or "**" in pattern)
        parts = pattern.replace("[^", "[!").split("/")
        return [name for name in names if _matches(name.split("/"), parts)]
    endings = SUFFIXES[kind]
    if kind not in ("parquet", "python"):
        endings += tuple(ending + packed for ending in endings for packed in COMPRESSED)
    if isinstance(system, pafs.LocalFileSystem):
        return [name for name in _visible(info.path) if name.lower().endswith(endings)]
    visible = (name for name in _names(system, info.path) if not name.startswith(".") and "/." not in name)
    return [name for name in visible if name.lower().endswith(endings)]


def _names(system: pafs.FileSystem, folder: str, deep: bool = True) -> list[str]:
    """The files below a folder, relative to it."""
    start = len(folder.rstrip("/")) + 1
    entries = system.get_file_info(pafs.FileSelector(folder, recursive=deep))
    return [entry.path[start:] for entry in entries if entry.type == pafs.FileType.File]


def _visible(root: str) -> Iterator[str]:
    """The files below a local folder, relative to it, without hidden ones: those folders are not even opened."""
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    yield prefix + entry.name


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the components of a path match those of a shell glob, whose wildcards match no leading dot."""
    if not name or not pattern:
        return not name and not pattern
    part, rest = pattern[0], pattern[1:]
    hidden = name[0].startswith(".") and not part.startswith(".")
    if part == "**":
        return _matches(name, rest or ["*"]) or (not hidden and _matches(name[1:], pattern))
    return not hidden and fnmatchcase(name[0], part) and _matches(name[1:], rest)


def _join(base: str, names: Iterable[str]) -> Iterator[str]:
    if not _is_uri(base):
        start = posixpath.join(base, "")
        return (start + name for name in names)
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    return (urlunsplit(parts._replace(path=f"{path}/{quote(name)}")) for name in names)
