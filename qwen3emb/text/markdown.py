"""Markdown by its headings: sections with the path of their headings, without front matter and comments.

Blocks are found by a CommonMark parser, so what looks like a heading in code, a quote or a list is none.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["Section", "UndecodedLines", "markdown_sections"]

PIECE_BYTES = 1 << 20  # what is parsed at once; an ordinary file is smaller

_FENCES = {"---": ("---", "..."), "+++": ("+++",)}  # first line of front matter -> its last
_LONGEST_FRONT_MATTER = 200  # lines; more is a document between two rules
_COMMENT_BLOCK = re.compile(r"<!--(?:-?>|.*?(?:-->|\Z))", re.DOTALL)
_COMMENT = re.compile(r"(?P<kept>\\.|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`))|<!--(?:-?>|.*?-->)", re.DOTALL)
_ATTRIBUTES = re.compile(r"\s*\{[#:.][^{}]*\}$")  # `## Install {#install}` of several site generators


@dataclass(frozen=True)
class Section:
    """What stands between two headings.

    Attributes:
        title: the headings above it and its own, "Guide > Install > Linux"; "" before the first heading.
        text: what stands under its heading, without the sections below it; "" where nothing does.
        line: number of the line of its heading, from 1; 1 for what stands before the first heading.
    """

    title: str
    text: str
    line: int


@dataclass(frozen=True)
class UndecodedLines:
    """Lines that are not UTF-8, of which `line` is the first and `bad_line` the one with the wrong byte, from 1."""

    raw: bytes
    line: int
    bad_line: int


def markdown_sections(lines: Iterable[bytes]) -> Iterator[Section | UndecodedLines]:
    """The sections of a Markdown file, in its order: those with a text, and those with neither text nor subsections.

    Front matter (YAML, TOML) is left out; its `title` begins every path. A file without any text is one empty section.
    A section of more than a megabyte may come in several, each with the number of its own first line. Lines are read
    and, where they are not UTF-8, left out by the megabyte.
    """
    reader = _Reader()
    pending, size, wanted = list[bytes](), 0, PIECE_BYTES
    for number, line in enumerate(lines):
        pending.append(line if number else line.removeprefix(b"\xef\xbb\xbf"))
        size += len(line)
        if size >= wanted:
            rest = yield from reader.read(b"".join(pending), last=False)
            pending, size = [rest], len(rest)
            wanted = max(PIECE_BYTES, 2 * size)
    yield from reader.read(b"".join(pending), last=True)


@dataclass(frozen=True)
class _Heading:
    level: int
    title: str
    start: int  # its first line
    end: int  # the line after it


class _Reader:
    """Reads pieces of a file; knows the line and the headings that the next one begins under."""

    def __init__(self) -> None:
        self._blocks = MarkdownIt("commonmark").disable("inline")
        self._inline = MarkdownIt("commonmark")
        self._line = 1
        self._path: list[tuple[int, str]] = []  # level and title of the open headings; level 0 is the front matter's
        self._first, self._any = True, False

    def read(self, raw: bytes, last: bool) -> Generator[Section | UndecodedLines, None, bytes]:
        """The sections of a piece; returns its end, which belongs to the next piece, nothing of the last one."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield UndecodedLines(raw, self._line, self._line + raw.count(b"\n", 0, error.start))
            self._line, self._first, self._any = self._line + raw.count(b"\n"), False, True
            return b""
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if self._first:
            self._take_front_matter(lines)
        self._first = False
        references: dict[str, Any] = {}
        tokens = self._blocks.parse("\n".join(lines), references)
        end = len(lines) if last else _last_border(tokens)
        headings = list(self._headings(tokens, references))
        for section in self._sections(headings, _without_comments(lines, tokens), end, last):
            self._any = True
            yield section
        if last and not self._any:
            yield Section(self._title(), "", 1)
        self._line += end
        return "\n".join(lines[end:]).encode("utf-8")

    def _take_front_matter(self, lines: list[str]) -> None:
        """Blank the front matter, so that line numbers stay, and begin the path with its title."""
        ends = _FENCES.get(lines[0].rstrip(), ())
        end = next((n for n, line in enumerate(lines[1:_LONGEST_FRONT_MATTER], 1) if line.rstrip() in ends), None)
        if end is None:
            return
        content = "\n".join(lines[1:end])
        values = _yaml(content) if lines[0].startswith("-") else _toml(content)
        if not isinstance(values, dict):
            return
        lines[: end + 1] = [""] * (end + 1)
        title = values.get("title")
        if isinstance(title, str) and title.strip():
            self._path.append((0, " ".join(title.split())))

    def _headings(self, tokens: list[Token], references: dict[str, Any]) -> Iterator[_Heading]:
        """Those at the top level: headings within lists and quotes are part of the text."""
        for token, inline in pairwise(tokens):
            if token.type == "heading_open" and token.level == 0 and token.map:
                yield _Heading(int(token.tag[1:]), self._plain(inline.content, references), *token.map)

    def _plain(self, heading: str, references: dict[str, Any]) -> str:
        """A heading without its markup."""
        [inline] = self._inline.parseInline(_ATTRIBUTES.sub("", heading), references)
        words = {"text", "code_inline", "image"}
        parts = [c.content if c.type in words else " " * c.type.endswith("break") for c in inline.children or []]
        return " ".join("".join(parts).split())

    def _sections(self, headings: list[_Heading], lines: list[str | None], end: int, last: bool) -> Iterator[Section]:
        """The sections up to the line `end`; the first lines belong to the headings that are open."""
        inside = [heading for heading in headings if heading.start < end]
        beyond = [heading.level for heading in headings if heading.start >= end]
        starts = [*(heading.start for heading in inside), end]
        # The level of what follows each heading: 0 at the end of the file, 9 where only the next piece tells.
        levels = [*(heading.level for heading in inside[1:]), *(beyond[:1] or [0 if last else 9])]
        if text := _joined(lines[: starts[0]]):
            yield Section(self._title(), text, self._line)
        for heading, stop, following in zip(inside, starts[1:], levels, strict=False):
            self._enter(heading)
            text = _joined(lines[heading.end : stop])
            if text or following <= heading.level:
                yield Section(self._title(), text, self._line + heading.start)

    def _enter(self, heading: _Heading) -> None:
        while self._path and self._path[-1][0] >= heading.level:
            self._path.pop()
        if self._path != [(0, heading.title)]:  # else the front matter has the same title
            self._path.append((heading.level, heading.title))

    def _title(self) -> str:
        return " > ".join(title for _, title in self._path if title)


def _joined(lines: Sequence[str | None]) -> str:
    return "\n".join(line for line in lines if line is not None).strip()


def _last_border(tokens: list[Token]) -> int:
    """The line of the last heading at the top level, else of the last block there; 0 where there is one block only."""
    tops = [(token.type, token.map[0]) for token in tokens if token.level == 0 and token.map]
    headings = [start for kind, start in tops if kind == "heading_open" and start]
    return headings[-1] if headings else tops[-1][1] if tops else 0


def _without_comments(lines: list[str], tokens: list[Token]) -> list[str | None]:
    """The lines without HTML comments; None for a line that had nothing else. Code keeps what looks like one."""
    kept: list[str | None] = list(lines)
    for token in tokens:
        pattern = {"html_block": _COMMENT_BLOCK, "inline": _COMMENT}.get(token.type)
        if pattern is None or token.map is None:
            continue
        start, end = token.map
        block = "\n".join(lines[start:end])
        if "<!--" not in block:
            continue
        cut = pattern.sub(_kept_or_newlines, block).split("\n")
        for number, line in enumerate(cut, start):
            if line != lines[number]:
                kept[number] = line.rstrip() or None
    return kept


def _kept_or_newlines(match: re.Match[str]) -> str:
    return match.groupdict().get("kept") or "\n" * match[0].count("\n")


def _yaml(content: str) -> Any:
    """The content as strings; an empty mapping where it is none or no YAML (a template, say)."""
    try:
        return yaml.load(content, Loader=yaml.BaseLoader) or {}  # BaseLoader makes strings only, so 2024-99-99 is one
    except (yaml.YAMLError, RecursionError):
        return {}


def _toml(content: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}
