"""Rows of a Parquet file by batches, and pieces of a text file, without a row's meaning."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs as pafs
from pyarrow import parquet as pq

from qwen3emb.core.errors import UserError

__all__ = ["TextPiece", "parquet_rows", "text_pieces"]

BATCH_ROWS = 1024
PIECE_BYTES = 1 << 20

_FENCE = re.compile(rb"\s{0,3}(```|~~~)")
_HEADING = re.compile(rb"\s{0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*\r?\n?$")
_UNDERLINE = re.compile(rb"\s{0,3}(=+|-+)[ \t]*\r?\n?$")


def parquet_rows(
    system: pafs.FileSystem,
    path: str,
    source: str,
    fields: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> Iterator[dict[str, object]]:
    """The values of `fields` (default all) row by row, and of those of `optional` that are there.

    A text that is not UTF-8, which Arrow does not promise, is bytes, also within lists and structs.

    Raises UserError where a column is missing, and pyarrow's own errors where the file is not Parquet.
    """
    with system.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        fields = names if fields is None else [*fields, *(name for name in optional if name in names)]
        for name in fields:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise UserError(f"{source} has no column {name!r}{hint} (it has {', '.join(names)}).")
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=fields):
            columns = [_values(batch.column(name)) for name in fields]
            for values in zip(*columns, strict=True):
                yield dict(zip(fields, values, strict=True))


def _values(column: pa.Array) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:  # of one value; the others are to be had one by one
        return [_lenient(value) for value in column]
    return values


def _lenient(value: pa.Scalar) -> object:
    """A value as Python's, with the texts in it that are not UTF-8 as bytes."""
    try:
        plain: object = value.as_py()
        return plain
    except UnicodeDecodeError:
        pass
    if isinstance(value, pa.DictionaryScalar):
        return _lenient(value.value)
    if isinstance(value, pa.StructScalar):
        return {name: _lenient(part) for name, part in value.items()}
    if isinstance(value, pa.ListScalar):  # all kinds of lists, and maps
        return [_lenient(part) for part in value.values]
    return bytes(value.as_buffer())


@dataclass(frozen=True)
class TextPiece:
    """A whole text file or a megabyte of it: its bytes, its title ("" if none), its first line (from 1)."""

    raw: bytes
    title: str
    line: int


def text_pieces(lines: Iterable[bytes], markdown: bool) -> Iterator[TextPiece]:
    """A text file in pieces of at least a megabyte, cut at blank lines; an ordinary file is one piece.

    In markdown the first heading outside code is every piece's title, and front matter is left out.
    """
    kept: list[bytes] = []
    size, first, title, any_yet = 0, 1, "", False
    for number, line in enumerate(_front_matter_blanked(lines) if markdown else _no_mark(lines), start=1):
        if size >= PIECE_BYTES and (not line.strip() or size >= 2 * PIECE_BYTES):
            title = title or (_title(kept) if markdown else "")
            yield TextPiece(b"".join(kept), title, first)
            kept, size, first, any_yet = [], 0, number, True
        kept.append(line)
        size += len(line)
    if not any_yet or b"".join(kept).strip():
        yield TextPiece(b"".join(kept), title or (_title(kept) if markdown else ""), first)


def _no_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without a byte order mark at their start."""
    for i, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if i == 0 else line


def _front_matter_blanked(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines with YAML front matter emptied, so that line numbers stay; none if it never closes."""
    source = iter(_no_mark(lines))
    held = [line for line in [next(source, b"")] if line]
    if held and held[0].rstrip() == b"---":
        for line in source:
            held.append(line)
            closed = line.rstrip() in (b"---", b"...")
            if closed or len(held) > 200:
                held = [b"\n"] * len(held) if closed else held
                break
    yield from held
    yield from source


def _title(lines: Iterable[bytes]) -> str:
    """The text of the first heading outside fenced code, "" where there is none."""
    fenced, previous = False, b""
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
        found = None if fenced else _HEADING.match(line)
        if found:
            return found.group(1).decode("utf-8", "replace").strip()
        if not fenced and _UNDERLINE.match(line) and previous.strip():
            return previous.decode("utf-8", "replace").strip()
        previous = b"" if _UNDERLINE.match(line) or _FENCE.match(line) else line
    return ""
