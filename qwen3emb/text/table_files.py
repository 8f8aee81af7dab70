"""Tables by their name in a folder, whatever kind of file they are: `corpus` is corpus.jsonl, corpus.parquet, ..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyarrow.fs import FileType

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.text.files import COMPRESSED, SUFFIXES
from qwen3emb.text.raw_rows import TABLE_KINDS, RawRow, open_lines, raw_rows, user_read_errors

__all__ = ["TableFile", "find_table", "first_cells", "kind_of", "table_file", "table_rows"]

_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TableFile:
    """A table in a folder: `name` relative to the folder, `kind` one of `raw_rows.TABLE_KINDS`."""

    folder: Storage
    name: str
    kind: str

    @property
    def source(self) -> str:
        """The file in messages."""
        return f"{self.folder.uri}/{self.name}"


def find_table(folder: Storage, stem: str, kinds: Sequence[str] = TABLE_KINDS) -> TableFile | None:
    """The table called `stem`, with a suffix of one of the kinds (earlier ones first), maybe compressed, or None.

    Raises:
        UserError: there is no such file, but a folder of that name.
    """
    taken: str | None = None
    for kind in kinds:
        for suffix in SUFFIXES[kind]:
            for packed in ("", *(COMPRESSED if kind != "parquet" else ())):
                name = stem + suffix + packed
                file_type = folder.filesystem.get_file_info(folder.path(name)).type
                if file_type == FileType.Directory:
                    taken = taken or name
                elif file_type != FileType.NotFound:
                    return TableFile(folder, name, kind)
    if taken is not None:
        raise UserError(f"{folder}/{taken} is a folder; put a file of that name there, or remove it")
    return None


def kind_of(path: str) -> str | None:
    """The kind of table that a path's or URI's suffix names, or None."""
    name = PurePosixPath(path.partition("?")[0].lower() if "://" in path else path.lower())
    suffix = PurePosixPath(name.stem).suffix if name.suffix in COMPRESSED else name.suffix
    return next((kind for kind in TABLE_KINDS if suffix in SUFFIXES[kind]), None)


def table_file(folder: Storage, name: str) -> TableFile | None:
    """The file of a folder as a table, or None where its suffix is that of no table."""
    kind = kind_of(name)
    return TableFile(folder, name, kind) if kind else None


def table_rows(file: TableFile, header: Sequence[str] = ()) -> Iterator[RawRow]:
    """The rows of a table, in its order.

    Args:
        file: the table.
        header: names of the columns of a CSV or TSV file that has no header row.

    Raises:
        UserError: it cannot be read.
    """
    system, path = file.folder.filesystem, file.folder.path(file.name)
    return user_read_errors(raw_rows(system, path, file.kind, file.source, header=header), file.source)


def first_cells(file: TableFile) -> list[str]:
    """The cells of the first line of a TSV or CSV file that is not blank (quotes stay)."""
    with open_lines(file.folder.filesystem, file.folder.path(file.name)) as lines:
        first = next((line for line in lines if line.removeprefix(_MARK).strip()), b"")
    text = first.removeprefix(_MARK).decode("utf-8", "replace").rstrip("\r\n")
    return text.split("\t" if file.kind == "tsv" else ",")
