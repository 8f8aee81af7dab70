"""Readers of one file each: JSONL, Parquet, CSV/TSV, Markdown and text into passages and rejects.

A bad row becomes a `Reject` and the others are read on; a file that cannot be read at all raises UserError.
Files stream: a reader holds one row, one Parquet batch, or one megabyte of a text file or of Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pyarrow import fs as pafs

from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import Passage, Reject, clean_newlines, digits, escaped, text_problem
from qwen3emb.text.files import SUFFIXES, file_prefixes, list_files, resolve
from qwen3emb.text.languages import check_language
from qwen3emb.text.markdown import UndecodedLines, markdown_sections
from qwen3emb.text.raw_rows import TABLE_KINDS, open_lines, raw_rows, user_read_errors

__all__ = ["STAGE", "check_language", "list_files", "read_file", "text_pieces"]

PIECE_BYTES = 1 << 20

STAGE = "corpus"


@dataclass(frozen=True)
class _Spec:
    """What one call of `read_file` reads, and how its rows become passages."""

    source: str
    prefix: str
    text_field: str
    title_field: str | None
    id_field: str | None
    language: str
    language_field: str | None = None

    @property
    def fields(self) -> list[str]:
        """The fields that are read, text first, each once."""
        names = (self.text_field, self.title_field, self.id_field, self.language_field)
        return list(dict.fromkeys(name for name in names if name))

    @property
    def optional(self) -> set[str | None]:
        """The fields that a row, and so a whole table, may lack."""
        return {self.title_field, self.language_field} - {self.text_field, self.id_field}


def read_file(
    path_or_uri: str,
    kind: str,
    *,
    text_field: str,
    title_field: str | None,
    id_field: str | None,
    language: str | None,
    language_field: str | None = None,
    filesystem: pafs.FileSystem | None = None,
    id_prefix: str | None = None,
) -> Iterator[Passage | Reject]:
    """The passages and rejects of one file, in its order.

    `kind` is jsonl, parquet, csv, tsv (each but parquet also compressed: .gz, .zst, .bz2), markdown or text; the
    field names count for the first four. Rows count from 1: lines of JSONL (blank ones are skipped), records of
    Parquet, CSV and TSV after the header. A markdown file is a passage for each of its sections, whose title are its
    headings and whose row is the line of the last one (`text.markdown`). A text file is one passage, of row 1, or one
    per megabyte cut at blank lines, whose row is then its first line. A row's own language, where `language_field` has
    one, replaces `language`. A row, and a whole table, may lack title and language field.
    TSV has no quoting. Without `id_field` the id is "<id_prefix>:<row>", the prefix being the file's stem by default
    (`file_prefixes` gives distinct ones).

    Raises UserError for an unreadable file, a missing column, an unknown kind or language. Reject codes:
    invalid_utf8, invalid_json, invalid_csv, missing_field, not_a_string, empty_field, lone_surrogate,
    control_character, unknown_language.
    """
    reader = _READERS.get(kind)
    if reader is None:
        raise UserError(f"unknown kind {kind!r} for {path_or_uri}; use one of {', '.join(_READERS)}.")
    prefix = id_prefix if id_prefix is not None else file_prefixes([path_or_uri])[path_or_uri]
    spec = _Spec(path_or_uri, prefix, text_field, title_field, id_field, check_language(language), language_field)
    return user_read_errors(reader(*resolve(path_or_uri, filesystem), spec), path_or_uri)


_Reader = Callable[[pafs.FileSystem, str, _Spec], Iterator[Passage | Reject]]


def _read_table(system: pafs.FileSystem, path: str, spec: _Spec, kind: str) -> Iterator[Passage | Reject]:
    required = [name for name in spec.fields if name not in spec.optional]
    optional = [name for name in spec.fields if name in spec.optional]
    for row in raw_rows(system, path, kind, spec.source, required, optional):
        if row.values is None:
            yield _reject(spec, row.number, row.problem, row.raw or b"")
        else:
            yield _row(row.values, row.number, spec, row.raw)


def _read_text(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    spec = _without_fields(spec)
    with open_lines(system, path) as lines:
        for raw, first in text_pieces(lines):
            try:
                yield _row({"text": raw.decode("utf-8").strip()}, first, spec, raw)
            except UnicodeDecodeError as error:
                line = first + raw.count(b"\n", 0, error.start)
                yield _reject(spec, first, f"invalid_utf8: line {line}", raw)


def _read_markdown(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    spec = _without_fields(spec)
    with open_lines(system, path) as lines:
        for item in markdown_sections(lines):
            if isinstance(item, UndecodedLines):
                yield _reject(spec, item.line, f"invalid_utf8: line {item.bad_line}", item.raw)
            else:
                yield _row({"text": item.text, "title": item.title}, item.line, spec, item.text or item.title)


def _without_fields(spec: _Spec) -> _Spec:
    """The spec of a file that is no table: what was configured as names of its fields does not count."""
    return _Spec(spec.source, spec.prefix, "text", "title", None, spec.language)


_READERS: dict[str, _Reader] = {
    **{kind: partial(_read_table, kind=kind) for kind in TABLE_KINDS},
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
    code = taken[spec.language_field].strip() if spec.language_field else ""
    try:
        language = check_language(code) if code else spec.language
    except UserError:
        return _reject(spec, row, f"unknown_language: {code[:40]!r}", repr(values) if raw is None else raw)
    return Passage(
        id=taken[spec.id_field] if spec.id_field else f"{spec.prefix}:{row}",
        text=taken[spec.text_field],
        title=taken[spec.title_field] if spec.title_field else "",
        language=language,
        source=spec.source,
    )


def _field(value: object, name: str, spec: _Spec) -> tuple[str, str]:
    """The field's text and "", or "" and the problem with it."""
    optional = name in spec.optional
    if name in (spec.id_field, spec.title_field) and name != spec.text_field:
        value = digits(value)
    if value is None:
        return "", "" if optional else f"missing_field: {name!r}"
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            return "", f"invalid_utf8: field {name!r}, byte {error.start}"
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


def text_pieces(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """A text file in pieces of at least a megabyte, cut at blank lines, each with the number of its first line.

    An ordinary file is one piece.
    """
    kept: list[bytes] = []
    size, first, any_yet = 0, 1, False
    for number, line in enumerate(_no_mark(lines), start=1):
        if size >= PIECE_BYTES and (not line.strip() or size >= 2 * PIECE_BYTES):
            yield b"".join(kept), first
            kept, size, first, any_yet = [], 0, number, True
        kept.append(line)
        size += len(line)
    if not any_yet or b"".join(kept).strip():
        yield b"".join(kept), first


def _no_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without a byte order mark at their start."""
    for i, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if i == 0 else line
