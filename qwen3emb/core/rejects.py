"""`Passage` and `Reject`, which readers of files yield, and the checks of every text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["BadRecord", "Passage", "Reject", "clean_newlines", "digits", "escaped", "text_problem"]

PAYLOAD_CHARACTERS = 10_000  # a reject keeps this much of its row; source and row number lead to the rest

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class BadRecord(ValueError):
    """A record that cannot be used; the message is `<code>: <detail>`."""


@dataclass(frozen=True)
class Passage:
    """One text of the corpus.

    `id` is unique within its corpus when the file's ids are; `title` is "" where there is none;
    `language` is a code as `check_language` returns it; `source` is the path or URI of the file.
    """

    id: str
    text: str
    title: str
    language: str
    source: str


@dataclass(frozen=True)
class Reject:
    """One row that was refused, with what is needed to find it in its file and to correct it.

    `stage` is the stage that refused it, `reason` is "<code>: <detail>", `source` the file's path or URI,
    `row` its 1-based row in that file, `payload` the row's text (escaped, at most 10,000 characters).
    """

    id: str
    stage: str
    reason: str
    source: str
    row: int
    payload: str

    @property
    def code(self) -> str:
        """The part of the reason to count by, e.g. "invalid_json"."""
        return self.reason.partition(":")[0]


def clean_newlines(text: str) -> str:
    """`text` with CRLF and CR line ends as LF; no other character changes."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def digits(value: object) -> object:
    """An id or title that is a whole number as its digits, None for NaN; anything else as it is.

    pandas writes 101 as 101.0 in a column with an empty cell, and the empty cell as NaN.
    """
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def text_problem(text: str) -> str | None:
    """Why `text` cannot be stored or trained on, as "<code>: <detail>", or None when it can.

    Codes: lone_surrogate (not encodable as UTF-8), control_character (any of category Cc but LF and TAB).
    """
    for code, pattern in (("lone_surrogate", _SURROGATE), ("control_character", _CONTROL)):
        match = pattern.search(text)
        if match is not None:
            return f"{code}: U+{ord(match.group()):04X} at character {match.start()}"
    return None


def escaped(raw: bytes | str) -> str:
    """`raw` as text that every file format can hold, cut at 10,000 characters; for a reject's payload.

    Undecodable bytes and lone surrogates become backslash escapes.
    """
    if isinstance(raw, bytes):
        text = raw[: 4 * PAYLOAD_CHARACTERS].decode("utf-8", "backslashreplace")
    else:
        text = raw[: PAYLOAD_CHARACTERS + 1].encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= PAYLOAD_CHARACTERS else text[: PAYLOAD_CHARACTERS - 3] + "..."
