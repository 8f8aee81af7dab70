"""Answers for bitext, STS and classification: the typed content, or `<code>: <detail>`, why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qwen3emb.synthesis.answers import json_object, plain
from qwen3emb.synthesis.task_prompts import GRADES

__all__ = [
    "Choice",
    "NewTask",
    "Rewrite",
    "Translation",
    "parse_class",
    "parse_new_task",
    "parse_rewrites",
    "parse_translation",
]

_HIGHEST = 5.0


@dataclass(frozen=True)
class Translation:
    """A sentence in another language."""

    text: str


@dataclass(frozen=True)
class Rewrite:
    """A sentence beside another, and how near their meanings are, from 0 to 5."""

    text: str
    score: float


@dataclass(frozen=True)
class Choice:
    """A label and the one it might be mistaken for; `text` where the generator wrote the text too."""

    label: str
    misleading: str
    text: str = ""


@dataclass(frozen=True)
class NewTask:
    """A classification task of the generator's own."""

    task: str
    labels: tuple[str, ...]


def parse_translation(answer: str, sentence: str) -> Translation | str:
    """The translation, or the problem: invalid_json, empty_text, copied_source."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    text = _words_of(content.get("translation"))
    if not text:
        return f"empty_text: {content.get('translation')!r}"
    return f"copied_source: {text}" if plain(text) == plain(sentence) else Translation(text)


def parse_rewrites(answer: str, sentence: str) -> dict[str, Rewrite] | str:
    """Name of `GRADES` -> rewrite, or the problem.

    Codes: invalid_json, empty_text, bad_score, sts_order (scores that do not fall from near to far), same_rewrites
    (two are one text, or one is the sentence itself).
    """
    content = json_object(answer)
    if isinstance(content, str):
        return content
    found: dict[str, Rewrite] = {}
    for name in GRADES:
        one = content.get(name)
        text = _words_of(one.get("text")) if isinstance(one, dict) else ""
        if not isinstance(one, dict) or not text:
            return f"empty_text: {name} is {one!r}"
        score = one.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= _HIGHEST:
            return f"bad_score: {name} has {score!r}"
        found[name] = Rewrite(text, float(score))
    scores = [one.score for one in found.values()]
    if any(far >= near for near, far in pairwise(scores)):
        return f"sts_order: scores {scores} do not fall"
    if len({plain(sentence), *(plain(one.text) for one in found.values())}) <= len(found):
        return f"same_rewrites: {[one.text for one in found.values()]}"
    return found


def parse_new_task(answer: str) -> NewTask | str:
    """The invented task, or the problem: invalid_json, bad_task (no name, or less than two different labels)."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    task, labels = _words_of(content.get("task")), content.get("labels")
    if not task or not isinstance(labels, list):
        return f"bad_task: {answer[:200]!r}"
    distinct = {plain(label): label for label in map(_words_of, labels) if label}
    if len(distinct) < 2 or len(distinct) != len(labels):
        return f"bad_task: labels {labels!r}"
    return NewTask(task, tuple(distinct.values()))


def parse_class(answer: str, labels: Sequence[str], written: bool) -> Choice | str:
    """The chosen labels, with the text where one was to be written, or the problem.

    Codes: invalid_json, empty_text, label_not_in_set, same_labels (the misleading label is the label).
    """
    content = json_object(answer)
    if isinstance(content, str):
        return content
    text = _words_of(content.get("text")) if written else ""
    if written and not text:
        return f"empty_text: {content.get('text')!r}"
    label, misleading = content.get("label"), content.get("misleading_label")
    for one in (label, misleading):
        if one not in labels:
            return f"label_not_in_set: {one!r}"
    if label == misleading:
        return f"same_labels: {label!r}"
    return Choice(str(label), str(misleading), text)


def _words_of(value: Any) -> str:
    """A text in one line; empty where there is none with a letter or digit."""
    return " ".join(value.split()) if isinstance(value, str) and any(c.isalnum() for c in value) else ""
