"""Prompts for synthetic bitext, STS and classification rows (paper section 3); `task_answers` reads what comes back.

As in `prompts`, everything fixed comes first: instructions, then an example as an earlier turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from qwen3emb.synthesis.gates import word_count
from qwen3emb.synthesis.prompts import Message

__all__ = [
    "GRADES",
    "class_schema",
    "drawn_sentence",
    "label_messages",
    "label_schema",
    "new_task_messages",
    "new_task_schema",
    "rewrites_messages",
    "rewrites_schema",
    "text_messages",
    "translation_messages",
    "translation_schema",
]

GRADES = {
    "close": "says the same in other words (score 4 to 5)",
    "partial": "shares the subject and part of the meaning (score 2 to 3)",
    "distant": "shares the subject only and says something else (score 0 to 1)",
}
"""The rewrites of an STS row, from near to far."""

_SENTENCE_WORDS = (4, 40)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？؟।])\s+|(?<=[。！？])|\n\s*\n")
_LABEL_CHARACTERS = 60
_LABELS = (2, 6)

_TRANSLATION_TASK = "You are a translator. Translate the sentence faithfully, adding nothing. Answer in JSON."
_REWRITES_TASK = (
    "You write sentences for a test of meaning. For the given sentence write three others in the same language, "
    "each with a score from 0 (unrelated) to 5 (same meaning):\n"
    + "\n".join(f"{name}: {what}." for name, what in GRADES.items())
    + "\nAnswer in JSON."
)
_LABEL_TASK = (
    "You classify texts. From the given labels choose the one that fits the text, and as misleading_label one that "
    "a careless reader might choose instead. Answer in JSON."
)
_NEW_TASK = (
    "You invent text classification tasks. Given a passage and a person, name a task that this person would need for "
    "texts of this subject, and two to six labels that exclude each other. Answer in JSON."
)
_TEXT_TASK = (
    "You write examples for a text classification task. Write a new text that belongs to one label, name that label, "
    "and as misleading_label another one that the text might be mistaken for. Answer in JSON."
)


def drawn_sentence(text: str, draw: float) -> str:
    """One sentence of a text of 4 to 40 words where there is one, else the text's first 40 words.

    Args:
        text: a passage.
        draw: in [0, 1), chooses the sentence.
    """
    sentences = [" ".join(part.split()) for part in _SENTENCE_END.split(text)]
    low, high = _SENTENCE_WORDS
    fitting = [s for s in sentences if low <= word_count(s) <= high]
    if fitting:
        return fitting[int(draw * len(fitting))]
    return " ".join(text.split()[:high])[: high * 10]


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _text(most: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most}


def _compact(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _chat(task: str, example: str, answer: dict[str, Any], request: str) -> list[Message]:
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": example},
        {"role": "assistant", "content": _compact(answer)},
        {"role": "user", "content": request},
    ]


def translation_messages(sentence: str, language: str) -> list[Message]:
    """The chat that asks for a translation into `language` (an English name)."""
    example = _translation_request("The ferry does not run on Sundays.", "German")
    return _chat(
        _TRANSLATION_TASK,
        example,
        {"translation": "Die Fähre verkehrt sonntags nicht."},
        _translation_request(sentence, language),
    )


def _translation_request(sentence: str, language: str) -> str:
    return f"Sentence: {sentence}\nTranslate it into {language}."


def translation_schema(sentence: str) -> dict[str, Any]:
    """JSON schema of a translation of `sentence`."""
    return _object({"translation": _text(4 * len(sentence) + 40)})


def rewrites_messages(sentence: str, language: str) -> list[Message]:
    """The chat that asks for three graded rewrites of a sentence of `language` (an English name)."""
    answer = {
        "close": {"text": "On Sundays there is no ferry.", "score": 5},
        "partial": {"text": "The ferry runs only in summer.", "score": 2},
        "distant": {"text": "The ferry was built of oak.", "score": 0},
    }
    example = _rewrites_request("The ferry does not run on Sundays.", "English")
    return _chat(_REWRITES_TASK, example, answer, _rewrites_request(sentence, language))


def _rewrites_request(sentence: str, language: str) -> str:
    return f"Sentence ({language}): {sentence}"


def rewrites_schema(sentence: str) -> dict[str, Any]:
    """JSON schema of the rewrites of `sentence`."""
    one = _object(
        {"text": _text(3 * len(sentence) + 40), "score": {"type": "number", "enum": [n / 2 for n in range(11)]}}
    )
    return _object(dict.fromkeys(GRADES, one))


def label_messages(text: str, task: str, labels: Sequence[str]) -> list[Message]:
    """The chat that asks which of `labels` fits a text."""
    example = _label_request(
        "Last boat at 22:15; dogs travel free.", "subject of the text", ("sport", "travel", "cooking", "animals")
    )
    return _chat(
        _LABEL_TASK,
        example,
        {"label": "travel", "misleading_label": "animals"},
        _label_request(text, task, labels),
    )


def _label_request(text: str, task: str, labels: Sequence[str]) -> str:
    return f"Task: {task}\nLabels: {'; '.join(labels)}\nText: {text}"


def label_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a choice among `labels`."""
    one = {"enum": list(labels)}
    return _object({"label": one, "misleading_label": one})


def new_task_messages(passage: str, persona: str) -> list[Message]:
    """The chat that asks for a classification task of its own."""
    example = _new_task_request("Rye dough tears when it is kneaded like wheat.", "a baker's apprentice")
    answer = {"task": "Which step of baking a note is about", "labels": ["kneading", "proving", "baking", "storing"]}
    return _chat(_NEW_TASK, example, answer, _new_task_request(passage, persona))


def _new_task_request(passage: str, persona: str) -> str:
    return f"Passage: {passage}\nPerson: {persona}"


def new_task_schema() -> dict[str, Any]:
    """JSON schema of an invented task."""
    low, high = _LABELS
    labels = {"type": "array", "items": _text(_LABEL_CHARACTERS), "minItems": low, "maxItems": high}
    return _object({"task": _text(160), "labels": labels})


def text_messages(task: str, labels: Sequence[str], words: str, language: str) -> list[Message]:
    """The chat that asks for a text of a class.

    Args:
        task: what is classified.
        labels: of the task.
        words: length as `low-high`.
        language: of the text, in English.
    """
    example = _text_request(
        "Which step of baking a note is about", ("kneading", "proving", "baking", "storing"), "5-20", "English"
    )
    answer = {
        "text": "Left the loaves under a cloth until they had doubled.",
        "label": "proving",
        "misleading_label": "storing",
    }
    return _chat(_TEXT_TASK, example, answer, _text_request(task, labels, words, language))


def _text_request(task: str, labels: Sequence[str], words: str, language: str) -> str:
    return f"Task: {task}\nLabels: {'; '.join(labels)}\nWrite a text of {words} words in {language}."


def class_schema(labels: Sequence[str], words: str) -> dict[str, Any]:
    """JSON schema of a written text with its label, for a length of `low-high` words."""
    one = {"enum": list(labels)}
    longest = 10 * int(words.partition("-")[2]) + 20
    return _object({"text": _text(longest), "label": one, "misleading_label": one})
