"""The prose of a docstring: its first paragraph, its prose lines and the number of their words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

__all__ = ["first_paragraph", "is_natural_language", "natural_language_words", "prose_lines"]

_DOCTEST = re.compile(r"\s*>>>(\s|$)")
_FENCE = re.compile(r"\s*(```|~~~)")
_DIRECTIVE = re.compile(r"\s*\.\.(\s|$)")  # also reST comments and link targets
_FIELD = re.compile(r"\s*[:@][A-Za-z][^:`]*:(\s|$)")  # ":param x: ...", "@return: ..."
_RULE = re.compile(r"\s*([-=~^*#+_.|\"'`])\1{2,}[-=~^*#+_.|\"'` ]*$")  # underlines, table borders

# One word of a language: letters with apostrophes or hyphens inside; a CJK character counts as a word.
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_EDGES = ".,;:!?()[]{}<>\"'`*\u2018\u2019\u201c\u201d\u2026-\u2013\u2014/"


def first_paragraph(docstring: str) -> str:
    """The lines before the first blank line, doctest, directive or field, with whitespace collapsed."""
    kept: list[str] = []
    for line in inspect.cleandoc(docstring).split("\n"):
        if not line.strip() or _starts_markup(line):
            break
        kept.append(line)
    return " ".join(" ".join(kept).split())


def natural_language_words(docstring: str) -> int:
    """The number of words of prose; doctests, reST directives and fields, code blocks and rules excluded.

    A token with digits, underscores, dots or operators inside (an identifier, a call) is no word.
    """
    return sum(_words(line) for line in prose_lines(docstring))


def is_natural_language(text: str, min_words: int = 40) -> bool:
    """Whether `text` has `min_words` words of prose, which are at least half of its prose lines' tokens."""
    lines = list(prose_lines(text))
    words = sum(_words(line) for line in lines)
    return words >= min_words and 2 * words >= sum(len(line.split()) for line in lines)


def prose_lines(docstring: str) -> Iterator[str]:
    """The lines that are neither doctest, directive, field, code block nor rule."""
    lines = inspect.cleandoc(docstring).split("\n")
    skip_deeper_than: int | None = None  # the indent of a directive, field or "::" whose block is skipped
    in_doctest = in_fence = False
    for line in lines:
        blank, indent = not line.strip(), len(line) - len(line.lstrip())
        if _FENCE.match(line):
            in_fence = not in_fence
            continue
        in_doctest = not blank and (in_doctest or _DOCTEST.match(line) is not None)
        if blank or in_doctest or in_fence:
            continue
        if skip_deeper_than is not None and indent > skip_deeper_than:
            continue
        skip_deeper_than = indent if _opens_block(line) else None
        if not _starts_markup(line) and not _RULE.match(line):
            yield line


def _starts_markup(line: str) -> bool:
    return any(pattern.match(line) for pattern in (_DOCTEST, _DIRECTIVE, _FIELD, _FENCE))


def _opens_block(line: str) -> bool:
    """Whether the deeper lines after this one belong to it and are no prose."""
    return bool(_DIRECTIVE.match(line) or _FIELD.match(line) or line.rstrip().endswith("::"))


def _words(line: str) -> int:
    count = 0
    for token in line.split():
        bare = token.strip(_EDGES)
        cjk = len(_CJK.findall(bare))
        count += cjk if cjk else int(_WORD.fullmatch(bare) is not None)
    return count
