"""Fields that grade or label a pair: their numbers, and whether they say that the pair is a positive."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qwen3emb.core.rejects import BadRecord

__all__ = ["NLI_NUMBERS", "SWIFT_NUMBERS", "Mark", "Meaning", "field_named", "marks_of", "meanings_of"]

LABELS = (
    *("label", "labels", "gold_label", "gold", "label_text", "entailment_judgment", "judgement", "judgment", "target"),
    *("is_duplicate", "is_paraphrase", "is_relevant", "relevant", "is_match", "equivalent"),
)
SCORES = (
    *("score", "similarity_score", "relatedness_score", "grade", "similarity", "relevance"),
    *("relevance_score", "rating", "quality"),
)
_NUMBERED = ("label", "labels", "gold_label", "gold", "entailment_judgment")  # where NLI's classes stand as numbers

NLI_NUMBERS = {0.0: "entailment", 1.0: "neutral", 2.0: "contradiction", -1.0: "no agreement"}
"""SNLI, MultiNLI, XNLI, ANLI."""
SWIFT_NUMBERS = {0.0: "0", 1.0: ""}

_YES = ("entailment", "entails", "entailed", "equivalent", "paraphrase", "duplicate", "relevant", "match")
_NO = ("neutral", "contradiction", "contradicts", "contradictory", "irrelevant", "different", "mismatch", "unrelated")
_WORDS = {
    **dict.fromkeys(_YES, ""),
    **{word: word for word in _NO},
    **{f"{no}_{word}": f"no {word}" for no in ("not", "non", "no") for word in _YES},
    **{f"non{word}": f"no {word}" for word in _YES},
    "-": "no agreement",
}
"""Word of a label -> what the pair is instead of a positive; "" where it is one."""
_TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True)
class Mark:
    """A field with a score or label of a pair.

    Attributes:
        field: its name.
        value: as it stands in the record.
        score: whether its name is that of a score, not of a label.
        numbers: number -> what it says (see `Meaning.instead`), where the format defines it.
    """

    field: str
    value: object
    score: bool = False
    numbers: Mapping[float, str] | None = None


@dataclass(frozen=True)
class Meaning:
    """What a mark says of its pair.

    Attributes:
        mark: the mark.
        grade: its number, or None where it is a word.
        instead: what the pair is instead of a positive; "" where it is one, None where the mark alone cannot say.
    """

    mark: Mark
    grade: float | None
    instead: str | None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


_KINDS = {**{_plain(name): True for name in SCORES}, **{_plain(name): False for name in LABELS}}
_ORDER = {name: place for place, name in enumerate(map(_plain, (*LABELS, *SCORES)))}


def field_named(fields: Iterable[str], names: Iterable[str]) -> str | None:
    """The field with the first of `names` that occurs, or None; case, `_`, `-` and blanks do not count."""
    by_name: dict[str, str] = {}
    for field in fields:
        by_name.setdefault(_plain(field), field)
    return next((by_name[_plain(name)] for name in names if _plain(name) in by_name), None)


def marks_of(
    values: Mapping[str, object], configured: str, taken: Iterable[str], numbers: Mapping[float, str] | None = None
) -> tuple[Mark, ...]:
    """The marks of a record, labels before scores.

    Args:
        values: the record.
        configured: the only field that counts, where the config names one.
        taken: fields that hold texts, and are no marks.
        numbers: what the numbers of a label mean, where the format defines it.
    """
    if configured:
        scale = numbers if _plain(configured) in _NUMBERED_PLAIN else None
        return (Mark(configured, values.get(configured), _KINDS.get(_plain(configured), True), scale),)
    text = set(taken)
    fields = sorted((f for f in values if f not in text and _plain(f) in _KINDS), key=lambda f: _ORDER[_plain(f)])
    return tuple(
        Mark(f, values[f], _KINDS[_plain(f)], numbers if _plain(f) in _NUMBERED_PLAIN else None) for f in fields
    )


_NUMBERED_PLAIN = {_plain(name) for name in _NUMBERED}


def meanings_of(marks: Iterable[Mark]) -> Iterator[Meaning]:
    """The meanings of marks; those without a value are left out.

    Raises:
        BadRecord: code bad_grade, a value that is neither a number nor a known word.
    """
    for mark in marks:
        value = mark.value.decode("utf-8", "replace") if isinstance(mark.value, bytes) else mark.value
        if isinstance(value, str):
            word = value.strip().casefold()
            word = word if word == "-" else re.sub(r"[\s_-]+", "_", word)
            if word in _WORDS:
                yield Meaning(mark, None, _WORDS[word])
                continue
            value = _TRUTH.get(word, value)
        grade = _number(value, mark.field)
        if grade is not None:
            yield Meaning(mark, grade, _instead(mark, grade))


def _instead(mark: Mark, grade: float) -> str | None:
    """What a number says that the pair is instead of a positive, see `Meaning.instead`."""
    instead = (mark.numbers or {}).get(grade)
    return "" if instead == "entailment" else instead


def _number(value: object, name: str) -> float | None:
    """A number; None where the field is there but empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        grade = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        grade = math.nan
    if isinstance(value, float) and math.isnan(value):
        return None  # how pandas writes an empty cell
    if not math.isfinite(grade):
        shown = repr(value) if not isinstance(value, int) else "a huge number"
        raise BadRecord(f"bad_grade: field {name!r} is {shown[:80]}")
    return grade
