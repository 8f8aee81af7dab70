"""The text or the class in a field of a labelled record, cleaned."""

from __future__ import annotations

import math
import re

from qwen3emb.core.rejects import BadRecord, clean_newlines, text_problem

__all__ = ["class_text", "clean_text", "required_text"]

_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")


def class_text(value: object, name: str) -> str:
    """The class that a label names: 1, 1.0, "1" and "1.0" are one class, and so are true, "true" and "True".

    Raises:
        BadRecord: codes missing_field (no label is no class), and those of `clean_text`.
    """
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and math.isnan(value):
        value = None
    elif isinstance(value, int | float):
        value = str(int(value) if value == value // 1 else value)
    text = required_text(value, name)
    whole = _WHOLE.fullmatch(text)
    if whole:
        return "0" if whole[1] == "-0" else whole[1]
    return text.lower() if text.lower() in ("true", "false") else text


def clean_text(value: object, name: str) -> str:
    """A text, stripped, with LF line ends; "" where it is null or blank."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(f"invalid_utf8: field {name!r}, byte {error.start}") from error
    if not isinstance(value, str):
        raise BadRecord(f"not_a_string: field {name!r} is {type(value).__name__}")
    text = clean_newlines(value).strip()
    problem = text_problem(text)
    if problem:
        raise BadRecord(f"{problem} of field {name!r}")
    return text


def required_text(value: object, name: str) -> str:
    """The text of a field that must have one."""
    text = clean_text(value, name)
    if not text:
        raise BadRecord(f"missing_field: {name!r}" if value is None else f"empty_field: {name!r}")
    return text
