"""Classification: a text and the label that fits it, of a task that is given or that the generator invents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import (
    Message,
    example_chat,
    json_object,
    longest_text,
    object_schema,
    one_line,
    plain,
    text_schema,
)
from qwen3emb.synthesis.gates import Gates
from qwen3emb.synthesis.tasks.item import Call, SynthesisItem
from qwen3emb.text.false_negatives import answers_of, true_negatives

__all__ = [
    "Choice",
    "Classification",
    "NewTask",
    "class_schema",
    "label_messages",
    "label_schema",
    "new_task_messages",
    "new_task_schema",
    "parse_class",
    "parse_new_task",
    "text_messages",
]

_LABEL_CHARACTERS = 60
_LABELS = (2, 6)

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


class Classification:
    """A passage with one of the given label sets (one call), or a task and a text of the generator's own (two)."""

    def __init__(self, cfg: SynthesizeConfig, seed: int, gates: Gates) -> None:
        """Draws follow from `seed`; `gates` look at what was written."""
        self._cfg, self._seed, self._gates = cfg, seed, gates

    def call(self, item: SynthesisItem) -> Call | None:
        """The next call; None when all answers are there."""
        task = self._task(item)
        if task is None:
            persona = item.personas[0] if item.personas else "anybody"
            return Call(
                "task", new_task_messages(item.shown, persona), new_task_schema(), 2 * self._cfg.max_query_tokens
            )
        if "class" in item.answers:
            return None
        if "task" not in item.answers:
            return Call("class", label_messages(item.shown, task.task, task.labels), label_schema(task.labels), 96)
        requirement = item.requirement
        chat = text_messages(task.task, task.labels, requirement.words, requirement.language_name)
        return Call("class", chat, class_schema(task.labels, requirement.words), 2 * self._cfg.max_query_tokens)

    def read(self, item: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in an answer; `<code>: <detail>` where it cannot be used."""
        if name == "task":
            return item.keep(name, parse_new_task(answer))
        task = self._task(item)
        assert task is not None
        parsed = parse_class(answer, task.labels, written="task" in item.answers)
        if not isinstance(parsed, str) and parsed.text:
            parsed = self._gates.problem(parsed.text, "", item.requirement) or parsed
        return item.keep(name, parsed)

    def pairs(self, item: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of an item with all answers."""
        task, choice = self._task(item), item.answers["class"]
        assert task is not None
        text = choice.text or item.document
        wrong = [choice.misleading, *(label for label in task.labels if label not in (choice.label, choice.misleading))]
        query = f"{task.task}\n{text}"
        kept, _ = true_negatives(query, wrong, answers_of([(query, choice.label)]))  # labels may differ in form only
        pair = item.pair(query, choice.label, negatives=[wrong[place] for place in kept])
        return [pair if choice.text else pair | {"language": item.passage["language"], "words": ""}]

    def _task(self, item: SynthesisItem) -> NewTask | None:
        """The task of the item: drawn from the configured label sets, or what the generator invented."""
        sets = self._cfg.label_sets
        if sets and unit_draw(self._seed, item.key, "label set") < self._cfg.label_sets_share:
            names = sorted(sets)
            name = names[int(unit_draw(self._seed, item.key, "which label set") * len(names))]
            return NewTask(name, tuple(sets[name]))
        invented: NewTask | None = item.answers.get("task")
        return invented


def label_messages(text: str, task: str, labels: Sequence[str]) -> list[Message]:
    """The chat that asks which of `labels` fits a text."""
    example = _label_request(
        "Last boat at 22:15; dogs travel free.", "subject of the text", ("sport", "travel", "cooking", "animals")
    )
    return example_chat(
        _LABEL_TASK,
        example,
        {"label": "travel", "misleading_label": "animals"},
        _label_request(text, task, labels),
    )


def _label_request(text: str, task: str, labels: Sequence[str]) -> str:
    return f"Task: {task}\nLabels: {'; '.join(labels)}\nText: {text}"


def label_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a choice among `labels`."""
    label = {"enum": list(labels)}
    return object_schema({"label": label, "misleading_label": label})


def new_task_messages(passage: str, persona: str) -> list[Message]:
    """The chat that asks for a classification task of its own."""
    example = _new_task_request("Rye dough tears when it is kneaded like wheat.", "a baker's apprentice")
    answer = {"task": "Which step of baking a note is about", "labels": ["kneading", "proving", "baking", "storing"]}
    return example_chat(_NEW_TASK, example, answer, _new_task_request(passage, persona))


def _new_task_request(passage: str, persona: str) -> str:
    return f"Passage: {passage}\nPerson: {persona}"


def new_task_schema() -> dict[str, Any]:
    """JSON schema of an invented task."""
    low, high = _LABELS
    labels = {"type": "array", "items": text_schema(_LABEL_CHARACTERS), "minItems": low, "maxItems": high}
    return object_schema({"task": text_schema(160), "labels": labels})


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
    return example_chat(_TEXT_TASK, example, answer, _text_request(task, labels, words, language))


def _text_request(task: str, labels: Sequence[str], words: str, language: str) -> str:
    return f"Task: {task}\nLabels: {'; '.join(labels)}\nWrite a text of {words} words in {language}."


def class_schema(labels: Sequence[str], words: str) -> dict[str, Any]:
    """JSON schema of a written text with its label, for a length of `low-high` words."""
    label = {"enum": list(labels)}
    return object_schema({"text": text_schema(longest_text(words)), "label": label, "misleading_label": label})


def parse_new_task(answer: str) -> NewTask | str:
    """The invented task, or the problem: invalid_json, bad_task (no name, or less than two different labels)."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    task, labels = one_line(content.get("task")), content.get("labels")
    if not task or not isinstance(labels, list):
        return f"bad_task: {answer[:200]!r}"
    distinct = {plain(label): label for label in map(one_line, labels) if label}
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
    text = one_line(content.get("text")) if written else ""
    if written and not text:
        return f"empty_text: {content.get('text')!r}"
    label, misleading = content.get("label"), content.get("misleading_label")
    for choice in (label, misleading):
        if choice not in labels:
            return f"label_not_in_set: {choice!r}"
    if label == misleading:
        return f"same_labels: {label!r}"
    return Choice(str(label), str(misleading), text)
