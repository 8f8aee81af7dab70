"""Readers of one file each: JSONL, Parquet, CSV/TSV, Markdown and text into passages and rejects.

A bad row becomes a `Reject` and the others go on; a file that cannot be read at all is the user's to mend.
Files stream: a reader holds one row, one Parquet batch, or one megabyte of a text file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pyarrow import fs as pafs

from qwen3emb.data.files import SUFFIXES, file_prefixes, first_line, list_files, resolve
from qwen3emb.data.languages import check_language
from qwen3emb.data.plain_files import parquet_rows, text_pieces
from qwen3emb.data.rows import Passage, Reject, clean_newlines, escaped, text_problem
from qwen3emb.errors import UserError

__all__ = ["STAGE", "check_language", "list_files", "read_file"]

STAGE = "corpus"
_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that were not UTF-8, by surrogateescape
_FIELD_LIMIT = 16 * 2**20  # characters; an unclosed quote must not swallow the rest of a huge file


@dataclass(frozen=True)
class _Spec:
    """What one call of `read_file` reads, and how its rows become passages."""

    source: str
    prefix: str
    text_field: str
    title_field: str | None
    id_field: str | None
    language: str

    @property
    def fields(self) -> list[str]:
        """The fields that are read, text first, each once."""
        return list(dict.fromkeys(f for f in (self.text_field, self.title_field, self.id_field) if f))


def read_file(
    path_or_uri: str,
    kind: str,
    *,
    text_field: str,
    title_field: str | None,
    id_field: str | None,
    language: str | None,
    filesystem: pafs.FileSystem | None = None,
    id_prefix: str | None = None,
) -> Iterator[Passage | Reject]:
    """The passages and rejects of one file, in its order.

    `kind` is jsonl, parquet, csv, tsv (each but parquet also compressed: .gz, .zst, .bz2), markdown or
    text; the field names count for the first four. Rows count from 1: lines of JSONL (blank ones are
    skipped), records of Parquet, CSV and TSV after the header. A markdown or text file is one passage,
    of one row, or one per megabyte cut at blank lines, whose row is then its first line; a markdown title
    is the first heading. TSV has no quoting. Without `id_field` the id is "<id_prefix>:<row>", the prefix
    being the file's stem by default (`file_prefixes` gives distinct ones).

    Raises UserError for an unreadable file, a missing column, an unknown kind or language. Reject codes:
    invalid_utf8, invalid_json, invalid_csv, missing_field, not_a_string, empty_field, lone_surrogate,
    control_character.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise UserError(f"unknown kind {kind!r} for {path_or_uri}; use one of {', '.join(_READERS)}.")
    prefix = id_prefix if id_prefix is not None else file_prefixes([path_or_uri])[path_or_uri]
    spec = _Spec(path_or_uri, prefix, text_field, title_field, id_field, check_language(language))
    return _guarded(reader, spec, *resolve(path_or_uri, filesystem))


_Reader = Callable[[pafs.FileSystem, str, _Spec], Iterator[Passage | Reject]]


def _guarded(reader: _Reader, spec: _Spec, system: pafs.FileSystem, path: str) -> Iterator[Passage | Reject]:
    """What `reader` yields, with the errors of an unreadable file told as the user's to mend."""
    done = 0
    try:
        for item in reader(system, path, spec):
            yield item
            done += 1
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        where = f" after row {done}" if done else ""
        raise UserError(
            f"{spec.source} cannot be read{where} ({first_line(error)}); "
            "check that it exists, may be read, and is of the kind that the config names."
        ) from error


def _open_lines(system: pafs.FileSystem, path: str) -> io.BufferedReader:
    """The file's bytes, decompressed by its suffix, as a buffered stream that iterates over lines."""
    return io.BufferedReader(system.open_input_stream(path, compression="detect"), buffer_size=1 << 20)


def _read_jsonl(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    with _open_lines(system, path) as lines:
        for row, line in enumerate(lines, start=1):
            raw = line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line
            if raw.strip():
                yield _json_row(raw.rstrip(b"\r\n"), row, spec)


def _json_row(raw: bytes, row: int, spec: _Spec) -> Passage | Reject:
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _reject(spec, row, f"invalid_utf8: byte {error.start} of the line", raw)
    except (ValueError, RecursionError) as error:
        return _reject(spec, row, f"invalid_json: {first_line(error)}", raw)
    if not isinstance(values, dict):
        return _reject(spec, row, f"invalid_json: {type(values).__name__} instead of an object", raw)
    return _row(values, row, spec, raw)


def _read_parquet(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    for row, values in enumerate(parquet_rows(system, path, spec.source, spec.fields), start=1):
        yield _row(values, row, spec, None)


def _read_csv(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    yield from _read_table(system, path, spec, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    yield from _read_table(system, path, spec, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_table(
    system: pafs.FileSystem, path: str, spec: _Spec, delimiter: str, quoting: Literal[0, 3]
) -> Iterator[Passage | Reject]:
    # csv has one limit per process and its default (128 KiB) refuses ordinary long documents.
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    raw_lines: list[str] = []  # the lines of the record being read, for a reject's payload
    with _open_lines(system, path) as stream:
        # Undecodable bytes become lone surrogates, so that only their row is refused.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        records = csv.reader(_tap(text, raw_lines), delimiter=delimiter, quoting=quoting, strict=True)
        header = _table_header(records, spec)
        row = 0
        while True:
            raw_lines.clear()
            try:
                record = next(records, None)
            except csv.Error as error:
                row += 1
                yield _reject(spec, row, f"invalid_csv: {error}", "".join(raw_lines))
                continue
            if record is None:
                return
            if record:  # a blank line is an empty record
                row += 1
                yield _table_row(record, header, row, spec, "".join(raw_lines))


def _tap(lines: Iterator[str], seen: list[str]) -> Iterator[str]:
    for line in lines:
        seen.append(line)
        yield line


def _table_header(records: Iterator[list[str]], spec: _Spec) -> list[str]:
    try:
        header = next(records, [])
    except csv.Error as error:
        raise UserError(f"{spec.source} has an unreadable header row ({error}); check its quotes.") from error
    for name in spec.fields:
        if header and name not in header:
            raise UserError(f"{spec.source} has no column {name!r}; its header has {', '.join(header)}.")
    return header


def _table_row(record: list[str], header: list[str], row: int, spec: _Spec, raw: str) -> Passage | Reject:
    if not raw.isascii() and _UNDECODED.search(raw):
        return _reject(spec, row, "invalid_utf8: in the row", raw.encode("utf-8", "surrogateescape"))
    if len(record) != len(header):
        return _reject(spec, row, f"invalid_csv: {len(record)} columns, the header has {len(header)}", raw)
    return _row(dict(zip(header, record, strict=True)), row, spec, raw)


def _read_text(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    with _open_lines(system, path) as lines:
        for piece in text_pieces(lines, markdown=False):
            yield _text_row(piece.raw, piece.title, piece.line, spec)


def _read_markdown(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    with _open_lines(system, path) as lines:
        for piece in text_pieces(lines, markdown=True):
            yield _text_row(piece.raw, piece.title, piece.line, spec)


def _text_row(raw: bytes, title: str, row: int, spec: _Spec) -> Passage | Reject:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = row + raw.count(b"\n", 0, error.start)
        return _reject(spec, row, f"invalid_utf8: line {line}", raw)
    whole_file = _Spec(spec.source, spec.prefix, "text", "title", None, spec.language)
    return _row({"text": text.strip(), "title": title}, row, whole_file, raw)


_READERS: dict[str, _Reader] = {
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "markdown": _read_markdown,
    "text": _read_text,
}
assert _READERS.keys() <= SUFFIXES.keys()


def _row(values: Mapping[str, object], row: int, spec: _Spec, raw: bytes | str | None) -> Passage | Reject:
    """The passage of one row's values, or the reject that says which field is wrong."""
    taken: dict[str, str] = {}
    for name in spec.fields:
        value, problem = _field(values.get(name), name, spec)
        if problem:
            return _reject(spec, row, problem, repr(values) if raw is None else raw)
        taken[name] = value
    return Passage(
        id=taken[spec.id_field] if spec.id_field else f"{spec.prefix}:{row}",
        text=taken[spec.text_field],
        title=taken[spec.title_field] if spec.title_field else "",
        language=spec.language,
        source=spec.source,
    )


def _field(value: object, name: str, spec: _Spec) -> tuple[str, str]:
    """The field's text and "", or "" and the problem with it."""
    optional = name == spec.title_field and name not in (spec.text_field, spec.id_field)
    if value is None:
        return "", "" if optional else f"missing_field: {name!r}"
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            return "", f"invalid_utf8: field {name!r}, byte {error.start}"
    if name == spec.id_field and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return "", f"not_a_string: field {name!r} is {type(value).__name__}"
    text = clean_newlines(value)
    problem = text_problem(text)
    if problem:
        return "", f"{problem} of field {name!r}"
    return text, "" if optional or text.strip() else f"empty_field: {name!r}"


def _reject(spec: _Spec, row: int, reason: str, raw: bytes | str) -> Reject:
    reason = escaped(reason)
    return Reject(f"{spec.prefix}:{row}", STAGE, reason, spec.source, row, escaped(raw))
