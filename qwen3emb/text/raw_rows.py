"""Rows of JSONL, Parquet, CSV and TSV files as mappings of field to value, without interpretation.

Files stream: one row or one Parquet batch is held at a time.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs
from pyarrow import parquet as pq

from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.text.files import first_line

__all__ = ["TABLE_KINDS", "RawRow", "open_lines", "parquet_rows", "raw_rows", "user_read_errors"]

BATCH_ROWS = 1024

_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that were not UTF-8, by surrogateescape
_FIELD_LIMIT = 16 * 2**20  # characters; an unclosed quote must not swallow the rest of a huge file


@dataclass(frozen=True)
class RawRow:
    """One row of a file.

    Attributes:
        number: counted from 1: lines of JSONL, records after the header of the other kinds.
        values: field -> value; None where the row cannot be read.
        problem: why the row cannot be read, as `<code>: <detail>`; codes: invalid_utf8, invalid_json, invalid_csv.
        raw: the row as it stands in the file; None for Parquet.
        line: number of the line that the row ends on, from 1; 0 for Parquet.
    """

    number: int
    values: Mapping[str, object] | None
    problem: str = ""
    raw: bytes | str | None = None
    line: int = 0

    @property
    def where(self) -> str:
        """The place of the row in its file, for messages."""
        return f"line {self.line}" if self.line else f"row {self.number}"


def raw_rows(
    system: pafs.FileSystem,
    path: str,
    kind: str,
    source: str,
    fields: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    header: Sequence[str] = (),
) -> Iterator[RawRow]:
    """The rows of one file, in its order.

    Args:
        system: file system of `path`.
        path: the file; all kinds but parquet also compressed (.gz, .zst, .bz2).
        kind: one of `TABLE_KINDS`. TSV has no quoting.
        source: its name in messages.
        fields: columns that must be there (CSV, TSV, Parquet); default all.
        optional: further columns, which may be missing; a Parquet file is read for no others than these and `fields`.
        header: names of the columns of a CSV or TSV file without a header row.

    Raises:
        UserError: a missing column, a column twice, an unreadable header.
        OSError, ArrowInvalid, ArrowNotImplementedError: an unreadable file (see `user_read_errors`).
    """
    if kind == "parquet":
        return _parquet(system, path, source, fields, optional)
    if kind == "jsonl":
        return _jsonl(system, path)
    return _table(system, path, kind, source, fields or (), header)


_Row = TypeVar("_Row")


def user_read_errors(rows: Iterator[_Row], source: str) -> Iterator[_Row]:
    """Yield `rows`, and raise the errors of an unreadable file as errors of the user.

    Raises:
        NotThere: a remote file is gone, or its connection.
        UserError: the file cannot be read.
    """
    done = 0
    try:
        for item in rows:
            yield item
            done += 1
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        where = f" after row {done}" if done else ""
        gone = "://" in source and isinstance(error, FileNotFoundError | ConnectionError | TimeoutError)
        raise (NotThere if gone else UserError)(
            f"{source} cannot be read{where} ({first_line(error)}); "
            "check that it exists, may be read, and is of the kind that the config names."
        ) from error


def open_lines(system: pafs.FileSystem, path: str) -> io.BufferedReader:
    """The file's bytes, decompressed by its suffix, as a buffered stream that iterates over lines."""
    return io.BufferedReader(system.open_input_stream(path, compression="detect"), buffer_size=1 << 20)


def _jsonl(system: pafs.FileSystem, path: str) -> Iterator[RawRow]:
    with open_lines(system, path) as lines:
        for number, line in enumerate(lines, start=1):
            raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if raw.strip():
                yield _json_row(raw.rstrip(b"\r\n"), number)


def _json_row(raw: bytes, number: int) -> RawRow:
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RawRow(number, None, f"invalid_utf8: byte {error.start} of the line", raw, number)
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, f"invalid_json: {first_line(error)}", raw, number)
    if not isinstance(values, dict):
        return RawRow(number, None, f"invalid_json: {type(values).__name__} instead of an object", raw, number)
    return RawRow(number, values, raw=raw, line=number)


def _parquet(
    system: pafs.FileSystem, path: str, source: str, fields: Sequence[str] | None, optional: Sequence[str]
) -> Iterator[RawRow]:
    for number, values in enumerate(parquet_rows(system, path, source, fields, optional), start=1):
        yield RawRow(number, values)


def _table(
    system: pafs.FileSystem, path: str, kind: str, source: str, fields: Sequence[str], header: Sequence[str]
) -> Iterator[RawRow]:
    delimiter, quoting = _TABLES[kind]
    # csv has one limit per process and its default (128 KiB) refuses ordinary long documents.
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    raw_lines: list[str] = []  # the lines of the record being read, for a reject's payload
    with open_lines(system, path) as stream:
        # Undecodable bytes become lone surrogates, so that only their row is refused.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        records = csv.reader(_tap(text, raw_lines), delimiter=delimiter, quoting=quoting, strict=True)
        columns = list(header) or _table_header(records, source, fields, raw_lines)
        number = 0
        while True:
            raw_lines.clear()
            try:
                record = next(records, None)
            except csv.Error as error:
                number += 1
                yield RawRow(number, None, f"invalid_csv: {error}", "".join(raw_lines), records.line_num)
                continue
            if record is None:
                return
            if not _blank(record, raw_lines):
                number += 1
                yield _table_row(record, columns, number, "".join(raw_lines), records.line_num)


def _tap(lines: Iterator[str], seen: list[str]) -> Iterator[str]:
    for line in lines:
        seen.append(line)
        yield line


def _blank(record: list[str], raw_lines: list[str]) -> bool:
    """Whether a record is a blank line, or one of spaces; a quoted empty cell is a record."""
    return len(record) < 2 and not "".join(raw_lines).strip()


def _table_header(records: Iterator[list[str]], source: str, fields: Sequence[str], raw_lines: list[str]) -> list[str]:
    header: list[str] | None = []
    try:
        while header is not None and _blank(header, raw_lines):
            raw_lines.clear()
            header = next(records, None)
    except csv.Error as error:
        raise UserError(f"{source} has an unreadable header row ({error}); check its quotes.") from error
    header = [cell.strip() for cell in header or []]
    twice = next((name for place, name in enumerate(header) if name and name in header[:place]), None)
    if twice is not None:
        raise UserError(f"{source} has the column {twice!r} twice in its header; rename or remove one of them.")
    for name in fields:
        if header and name not in header:
            raise UserError(f"{source} has no column {name!r}; its header has {', '.join(header)}.")
    return header


def _table_row(record: list[str], header: list[str], number: int, raw: str, line: int) -> RawRow:
    if not raw.isascii() and _UNDECODED.search(raw):
        return RawRow(number, None, "invalid_utf8: in the row", raw.encode("utf-8", "surrogateescape"), line)
    if len(record) != len(header):
        return RawRow(number, None, f"invalid_csv: {len(record)} columns, the header has {len(header)}", raw, line)
    return RawRow(number, dict(zip(header, record, strict=True)), raw=raw, line=line)


_Quoting = Literal[0, 3]
_TABLES: dict[str, tuple[str, _Quoting]] = {"csv": (",", csv.QUOTE_MINIMAL), "tsv": ("\t", csv.QUOTE_NONE)}
TABLE_KINDS = ("jsonl", "parquet", *_TABLES)
"""Kinds of files whose rows have fields."""


def parquet_rows(
    system: pafs.FileSystem,
    path: str,
    source: str,
    fields: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> Iterator[dict[str, object]]:
    """The values of `fields` (default all) row by row, and of those of `optional` that are there.

    A text that is not UTF-8, which Arrow does not check, comes as bytes, also within lists and structs.

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
    except UnicodeDecodeError:  # some value is not UTF-8: convert them one by one
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
