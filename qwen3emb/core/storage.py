"""Files on any storage: a folder, `s3://`, `gs://` - through pyarrow.fs, the same calls everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from qwen3emb.core.alone import alone
from qwen3emb.core.errors import UserError
from qwen3emb.core.location import checked_name, checked_place, encoded, is_uri, joined, parent_and_name, redacted

__all__ = ["Storage", "absolute_uri", "external_fingerprint", "files_fingerprint", "input_uri", "project_root"]

_TEMPORARY = ".tmp-"
_HASHED_FILE, _HASHED_FOLDER = 64 << 20, 512 << 20  # bytes: half a second, and a few


def project_root() -> Path:
    """The folder that relative paths of a configuration start from: the current one.

    A Ray job runs in a temporary copy of the working directory. What it wrote there would be lost, so there it is
    the checkout that this environment was installed from (`pip install -e`).

    Raises:
        UserError: a Ray job on a machine without such a checkout.
    """
    current = Path.cwd()
    if "working_dir_files" not in current.parts:
        return current
    try:
        origin = metadata.distribution("qwen3emb").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        origin = None
    url = json.loads(origin)["url"] if origin else ""
    root = Path(unquote(urlparse(url).path))
    if url.startswith("file:") and root.is_dir():
        return root
    raise UserError(
        "a relative path in a Ray job would be written to a temporary folder; give a URI or an absolute path, "
        "e.g. --set storage=s3://bucket/run"
    )


def absolute_uri(uri: str) -> str:
    """`uri` itself where it has a scheme or is absolute, else the path under `project_root()`.

    A relative file that lies in the current folder is taken from there, so that a Ray job reads the personas
    that were uploaded with its working directory; folders are not, since they may be outputs (`input_uri` takes them).
    """
    if is_uri(checked_place(uri)):
        return uri
    path = Path(uri).expanduser()
    if path.is_file():
        return str(path.resolve())
    return str(path if path.is_absolute() else (project_root() / path).resolve())


def input_uri(place: str) -> str:
    """`absolute_uri` of a file, folder or pattern that is only read; what the current folder has is taken from there.

    So a Ray job reads what was sent along with it, on every node, which has the same folder at the same place.

    Raises:
        UserError: it is relative, in a Ray job, and was not sent along.
    """
    if is_uri(checked_place(place)) or Path(place).expanduser().is_absolute():
        return absolute_uri(place)
    fixed = _PATTERN.split(place)[0]
    if (Path(place) if fixed == place else Path(posixpath.dirname(fixed) or ".")).exists():  # a pattern's folder
        return str(Path(os.path.abspath(place)))
    try:
        return absolute_uri(place)
    except UserError as error:
        raise UserError(
            f"{place}: not in the folder that was sent to the cluster (what .gitignore names stays behind); give a URI"
        ) from error


_PATTERN = re.compile(r"[*?\[]")


class Storage:
    """A folder on a file system; names below are relative to it, with forward slashes.

    Another process opens the same folder by `uri`, which has the options and credentials; `str()`, for messages and
    records, has no secrets.
    """

    def __init__(self, uri: str) -> None:
        """Open a folder, which need not exist.

        Raises:
            UserError: no file system is known for the URI, or it cannot be parsed.
        """
        place = absolute_uri(uri)
        if is_uri(place):
            self.uri = encoded(place)
            self.filesystem, self.root = _opened(self.uri)
        else:
            self.filesystem, self.root = pafs.LocalFileSystem(), place.rstrip("/") or "/"
        if self.is_local:
            self.uri = self.root

    @classmethod
    def of_file(cls, uri: str) -> tuple[Storage, str]:
        """The folder that a file lies in, and the file's name below it."""
        folder, name = parent_and_name(absolute_uri(uri))
        return cls(folder), name

    def __truediv__(self, name: str) -> Storage:
        """The folder `name` below this one, on the same file system with the same options."""
        below = object.__new__(Storage)
        below.uri, below.filesystem, below.root = joined(self.uri, name), self.filesystem, self.path(name)
        return below

    def __str__(self) -> str:
        """The URI or path, without passwords and secret options."""
        return str(redacted(self.uri))

    def path(self, name: str = "") -> str:
        """The path of `name` within `self.filesystem`.

        Raises:
            UserError: the name leads out of the folder.
        """
        below = checked_name(name)
        return posixpath.join(self.root, below) if below else self.root

    @property
    def is_local(self) -> bool:
        """True where the files lie in a folder of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def exists(self, name: str = "") -> bool:
        """True where a file or folder of this name is there."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file, decompressed where its name ends in .gz, .zst or .bz2."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file so that readers see all of it or nothing, whoever else writes it at the same time."""
        target = self.path(name)
        whole = memoryview(content)  # fails here on a wrong type: opening a stream on S3 already replaces the file
        self.filesystem.create_dir(posixpath.dirname(target), recursive=True)
        temporary = f"{target}{_TEMPORARY}{_writer()}" if self.is_local else target
        with self.filesystem.open_output_stream(temporary) as stream:
            stream.write(whole)
        if temporary != target:
            self.filesystem.move(temporary, target)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def names(self, name: str = "", suffix: str = "") -> list[str]:
        """Sorted names of the files below a folder; empty where it does not exist. Half-written ones are left out."""
        selector = pafs.FileSelector(self.path(name), recursive=True, allow_not_found=True)
        files = (i.path for i in self.filesystem.get_file_info(selector) if i.type == pafs.FileType.File)
        below = (posixpath.relpath(f, self.root) for f in files if f.endswith(suffix))
        return sorted(f for f in below if _TEMPORARY not in posixpath.basename(f))

    def entries(self) -> list[str]:
        """Sorted names of the files and folders directly in this folder, half-written ones too."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        return sorted(posixpath.basename(i.path) for i in self.filesystem.get_file_info(selector))

    def delete(self, name: str = "") -> None:
        """Remove a file or folder; nothing happens where it does not exist.

        A kill leaves any of a folder's files: a record that marks the others as complete has to be deleted before them.
        """
        kind = self.filesystem.get_file_info(self.path(name)).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))

    def read_table(self, name: str, schema: pa.Schema | None = None) -> pa.Table:
        """The rows of all Parquet files below a folder in name order, or of one file; none, of `schema`, without files.

        Raises:
            UserError: there is no such file or folder and no schema was given.
        """
        files = [name] if name.endswith(".parquet") else self.names(name, ".parquet")
        if not files and schema is None:
            raise UserError(f"{self / name}: no Parquet files there")
        tables = [pq.read_table(self.path(f), filesystem=self.filesystem) for f in files]
        return pa.concat_tables(tables) if tables else pa.Table.from_pylist([], schema=schema)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file (zstd) atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def write_parts(self, name: str, table: pa.Table, rows: int) -> None:
        """Write a table into files of at most `rows` rows below a folder; at least one, so that the schema is there."""
        for number, start in enumerate(range(0, max(1, len(table)), rows)):
            self.write_table(f"{name}/part-{number:05d}.parquet", table.slice(start, rows))

    def local(self, name: str = "") -> Path:
        """A local folder with the content of `name`; downloaded once to a temporary cache where storage is remote.

        Several processes of a machine may call it at once: one of them downloads, the others wait for it. The folder
        appears when it is complete, and another one when the files on storage have changed.

        Raises:
            StageFailure: another process of this machine has been downloading it for hours.
        """
        if self.is_local:
            return Path(self.path(name))
        below = self.filesystem.get_file_info(pafs.FileSelector(self.path(name), recursive=True))
        state = sorted((i.path, i.size, i.mtime_ns) for i in below if i.type == pafs.FileType.File)
        key = hashlib.sha256(repr((self.uri, name, state)).encode()).hexdigest()[:16]
        cache = Path(tempfile.gettempdir()) / f"qwen3emb-cache-{os.getuid()}"  # another user's cannot be written to
        if not (cache / key).is_dir():
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            with alone(cache / f".{key}.lock", f"{self} is being fetched"):
                if not (cache / key).is_dir():
                    self._download(name, cache / key)
        return cache / key

    def _download(self, name: str, target: Path) -> None:
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
        try:
            pafs.copy_files(self.path(name), str(partial), source_filesystem=self.filesystem)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def upload_file(self, file: Path, name: str) -> None:
        """Copy a local file to `name`."""
        self.filesystem.create_dir(posixpath.dirname(self.path(name)), recursive=True)
        pafs.copy_files(str(file), self.path(name), destination_filesystem=self.filesystem)

    def upload(self, folder: Path, name: str) -> None:
        """Copy the files of a local folder into `name`; where the folder is `name` itself, nothing is copied."""
        if self.is_local and Path(self.path(name)).resolve() == folder.resolve():
            return
        self.filesystem.create_dir(self.path(name), recursive=True)
        pafs.copy_files(str(folder), self.path(name), destination_filesystem=self.filesystem)


def _opened(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        hint = "; percent-encode the secret, or give it by the environment" if redacted(uri) != uri else ""
        raise UserError(f"{redacted(uri)}: not a place that can be opened ({redacted(str(error))}){hint}") from error
    return filesystem, str(root)


def _writer() -> str:
    """A name for one write, of host, process and chance: processes of two hosts may have the same number."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def external_fingerprint(uri: str, suffix: str = "", contents: bool = True) -> str:
    """A fingerprint of an input, 16 hexadecimal digits that change with its files.

    It is made of a file's content up to 64 MiB, of a larger file's size and time of change. Of a local folder it is
    made of the names and contents of its files where they have 512 MiB or less together; of a larger folder, and of
    one on other storage, whose contents would have to be fetched, of names, sizes and times.

    Args:
        uri: file or folder.
        suffix: only files whose names end so count.
        contents: false for installed packages, tens of thousands of files: names and sizes only.

    Raises:
        UserError: nothing is there.
    """
    place = Storage(uri)
    info = place.filesystem.get_file_info(place.root)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{redacted(uri)}: no such file or folder")
    if info.type == pafs.FileType.File:
        return _digest(_state(place.filesystem, info, info.size <= _HASHED_FILE))
    below = place.filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
    files = [i for i in below if i.type == pafs.FileType.File and i.path.endswith(suffix)]
    return files_fingerprint(place.filesystem, info.path, files, contents)


def files_fingerprint(
    filesystem: pafs.FileSystem, root: str, files: Sequence[pafs.FileInfo], contents: bool = True
) -> str:
    """A fingerprint of `files` below `root`, made as `external_fingerprint` of a folder is."""
    local = isinstance(filesystem, pafs.LocalFileSystem)
    hashed = contents and local and sum(i.size for i in files) <= _HASHED_FOLDER
    lines = []
    for item in sorted(files, key=lambda i: i.path):
        state = _state(filesystem, item, hashed) if contents else str(item.size)
        lines.append(f"{posixpath.relpath(item.path, root)} {state}\n")
    return _digest("".join(lines))


def _state(filesystem: pafs.FileSystem, info: pafs.FileInfo, hashed: bool) -> str:
    if not hashed:
        return f"{info.size} {info.mtime_ns}"
    digest = hashlib.sha256()
    with filesystem.open_input_file(info.path) as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
