"""Files on any storage: a folder, `s3://`, `gs://` - through pyarrow.fs, the same calls everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from qwen3emb.errors import UserError

__all__ = ["Storage", "absolute_uri", "external_fingerprint", "project_root"]


def project_root() -> Path:
    """What relative paths of a config are relative to: the current folder.

    A Ray job runs in a temporary copy of the working directory. What it wrote there would be lost, so there it is
    the checkout that this environment was installed from (`pip install -e`).

    Raises:
        UserError: a Ray job on a machine without such a checkout.
    """
    here = Path.cwd()
    if "working_dir_files" not in here.parts:
        return here
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
    that were uploaded with its working directory; folders are not, since they may be outputs.
    """
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if path.is_file():
        return str(path.resolve())
    return str(path if path.is_absolute() else (project_root() / path).resolve())


class Storage:
    """A folder on a file system; names below are relative to it, with forward slashes."""

    def __init__(self, uri: str) -> None:
        self.uri = absolute_uri(uri).rstrip("/")
        if "://" in self.uri:
            self.filesystem, self.root = pafs.FileSystem.from_uri(self.uri)
        else:
            self.filesystem, self.root = pafs.LocalFileSystem(), self.uri

    def __truediv__(self, name: str) -> Storage:
        return Storage(posixpath.join(self.uri, name))

    def path(self, name: str = "") -> str:
        """The path of `name` as `self.filesystem` wants it."""
        return posixpath.join(self.root, name) if name else self.root

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
        """Write a file so that readers see all of it or nothing."""
        target = self.path(name)
        self.filesystem.create_dir(posixpath.dirname(target), recursive=True)
        temporary = f"{target}.tmp-{os.getpid()}" if self.is_local else target
        with self.filesystem.open_output_stream(temporary) as stream:
            stream.write(content)
        if temporary != target:
            self.filesystem.move(temporary, target)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def names(self, name: str = "", suffix: str = "") -> list[str]:
        """Sorted names of the files below a folder; empty where it does not exist."""
        selector = pafs.FileSelector(self.path(name), recursive=True, allow_not_found=True)
        files = (i.path for i in self.filesystem.get_file_info(selector) if i.type == pafs.FileType.File)
        return sorted(posixpath.relpath(f, self.root) for f in files if f.endswith(suffix))

    def delete(self, name: str = "") -> None:
        """Remove a file or folder; nothing happens where it does not exist."""
        kind = self.filesystem.get_file_info(self.path(name)).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))

    def read_table(self, name: str, schema: pa.Schema | None = None) -> pa.Table:
        """All Parquet files below a folder (or one file) in name order; `schema` is what an empty folder gives.

        Raises:
            UserError: there is no such file or folder and no schema was given.
        """
        files = [name] if name.endswith(".parquet") else self.names(name, ".parquet")
        if not files and schema is None:
            raise UserError(f"{self.uri}/{name}: no Parquet files there")
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

        Several processes of one machine may ask at once: the folder appears whole, and anew when its files changed.
        """
        if self.is_local:
            return Path(self.path(name))
        below = self.filesystem.get_file_info(pafs.FileSelector(self.path(name), recursive=True))
        state = sorted((i.path, i.size, i.mtime_ns) for i in below if i.type == pafs.FileType.File)
        key = hashlib.sha256(repr((self.uri, name, state)).encode()).hexdigest()[:16]
        cache = Path(tempfile.gettempdir()) / "qwen3emb-cache"
        if not (cache / key).is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=cache, prefix=".partial-"))
            pafs.copy_files(self.path(name), str(partial), source_filesystem=self.filesystem)
            try:
                partial.rename(cache / key)
            except OSError:  # another process was faster
                shutil.rmtree(partial)
        return cache / key

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder to `name`; nothing to do where it is there already."""
        if self.is_local and Path(self.path(name)).resolve() == folder.resolve():
            return
        self.filesystem.create_dir(self.path(name), recursive=True)
        pafs.copy_files(str(folder), self.path(name), destination_filesystem=self.filesystem)


def external_fingerprint(uri: str, suffix: str = "") -> str:
    """What tells one state of an input from another: content of a small file, else names and sizes below a folder.

    Raises:
        UserError: nothing is there.
    """
    filesystem, root = Storage(uri).filesystem, Storage(uri).root
    info = filesystem.get_file_info(root)
    digest = hashlib.sha256()
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{uri}: no such file or folder")
    if info.type == pafs.FileType.File and info.size <= 64 << 20:
        with filesystem.open_input_stream(root) as stream:
            digest.update(stream.read())
        return digest.hexdigest()[:16]
    for line in _listing(filesystem, info, suffix):
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _listing(filesystem: pafs.FileSystem, info: pafs.FileInfo, suffix: str) -> Iterator[str]:
    if info.type == pafs.FileType.File:
        yield f"{info.size} {info.mtime_ns}"
        return
    below = filesystem.get_file_info(pafs.FileSelector(info.path, recursive=True))
    files = [i for i in below if i.type == pafs.FileType.File and i.path.endswith(suffix)]
    for item in sorted(files, key=lambda i: i.path):
        yield f"{posixpath.relpath(item.path, info.path)} {item.size}\n"
