"""Readers of one file each: JSONL, Parquet, CSV/TSV, Markdown and text into passages and rejects.

A bad row becomes a `Reject` and the others are read on; a file that cannot be read at all raises UserError.
Files stream: a reader holds one row, one Parquet batch, or one megabyte of a text file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pyarrow import fs as pafs

from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import Passage, Reject, clean_newlines, digits, escaped, text_problem
from qwen3emb.text.files import SUFFIXES, file_prefixes, list_files, resolve
from qwen3emb.text.languages import check_language
from qwen3emb.text.raw_rows import (
    TABLE_KINDS,
    open_lines,
    raw_rows,
    user_read_errors,
)

__all__ = ["STAGE", "TextPiece", "check_language", "list_files", "read_file", "text_pieces"]

PIECE_BYTES = 1 << 20
_FENCE = re.compile(rb"\s{0,3}(```|~~~)")
_HEADING = re.compile(rb"\s{0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*\r?\n?$")
_UNDERLINE = re.compile(rb"\s{0,3}(=+|-+)[ \t]*\r?\n?$")

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
    Parquet, CSV and TSV after the header. A markdown or text file is one passage, of one row, or one per megabyte cut
    at blank lines, whose row is then its first line; a markdown title is the first heading. A row's own language,
    where `language_field` has one, replaces `language`. A row, and a whole table, may lack title and language field.
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
    with open_lines(system, path) as lines:
        for piece in text_pieces(lines, markdown=False):
            yield _text_row(piece.raw, piece.title, piece.line, spec)


def _read_markdown(system: pafs.FileSystem, path: str, spec: _Spec) -> Iterator[Passage | Reject]:
    with open_lines(system, path) as lines:
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
        heading = None if fenced else _HEADING.match(line)
        if heading:
            return heading.group(1).decode("utf-8", "replace").strip()
        if not fenced and _UNDERLINE.match(line) and previous.strip():
            return previous.decode("utf-8", "replace").strip()
        previous = b"" if _UNDERLINE.match(line) or _FENCE.match(line) else line
    return ""
