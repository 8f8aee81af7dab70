"""A passage on its way to pairs of one task: what is asked for, what is known so far, and why it did not get there.

Length and language of a synthetic text are drawn for each item, not chosen (paper section 3). A draw depends on the
run's seed and the passage's id only, so that a resumed run asks for the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from qwen3emb.config.datasets import dataset_of
from qwen3emb.core.draws import unit_draw
from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import PAYLOAD_CHARACTERS, escaped
from qwen3emb.text.languages import LANGUAGES, check_language

__all__ = [
    "Call",
    "Requirement",
    "SynthesisItem",
    "SynthesisTask",
    "choose",
    "draw_requirement",
    "item_key",
    "language_name",
    "reject_id",
    "weighted_languages",
    "weighted_words",
]

_FINAL = {"prompt_too_long", "chat_template", "engine_died", "no_other_language"}  # asking again changes nothing
_Key = TypeVar("_Key", bound=str)


@dataclass(frozen=True)
class Call:
    """One question to the generator about an item: `name` tells it from the item's other calls."""

    name: str
    messages: list[dict[str, str]]
    schema: dict[str, Any]
    max_tokens: int


@dataclass(frozen=True)
class Requirement:
    """What is drawn for an item: `words` as `low-high`, `language` as a code, `language_name` in English."""

    words: str
    language: str
    language_name: str


@dataclass
class SynthesisItem:
    """A passage on its way to pairs of one task.

    `personas` are those that may write, best first; `number` counts the items of the passage from 0; `problem` is why
    there is no pair yet, as `<code>: <detail>`, `settled` that this will not change; `shown` is the passage as
    prompts hold it, `answers` what the calls so far gave, by their names.
    """

    passage: dict[str, Any]
    document: str
    personas: list[str]
    requirement: Requirement
    number: int = 0
    problem: str | None = None
    settled: bool = False
    task: str = "retrieval"
    shown: str = ""
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the draws of this item depend on: the passage's id, with the number of a further item."""
        return f"{self.passage['id']}#{self.number}" if self.number else str(self.passage["id"])

    def keep(self, name: str, parsed: Any) -> str | None:
        """Keep a parsed answer; return it instead where it is a problem."""
        if isinstance(parsed, str):
            return parsed
        self.answers[name] = parsed
        return None

    def fail(self, problem: str) -> None:
        """Note why there is no pair."""
        self.problem = problem
        self.settled = problem.partition(":")[0] in _FINAL

    def done(self) -> None:
        """Note that all answers are there."""
        self.problem, self.settled = None, True

    def pair(self, query: str, document: str, **more: Any) -> dict[str, Any]:
        """A pair of the item (schema `records.PAIR`); `more` are further columns."""
        return {
            "id": f"{self.passage['id']}#{self.number}",
            "query": query,
            "document": document,
            "document_id": self.passage["id"],
            "dataset": dataset_of(self.task),
            "language": self.requirement.language,
            "persona": "",
            "question_type": "",
            "difficulty": "",
            "words": self.requirement.words,
            "score": None,
            **more,
        }

    def reject(self) -> dict[str, Any]:
        """The item as a reject."""
        return {
            "id": self.key,
            "stage": "synthesize",
            "reason": escaped(str(self.problem))[:PAYLOAD_CHARACTERS],
            "source": self.passage["source"],
            "row": -1,
            "payload": escaped(self.document),
        }


class SynthesisTask(Protocol):
    """The calls of one task."""

    def call(self, item: SynthesisItem) -> Call | str | None:
        """The next call; None when all answers are there; a problem where nothing can be asked."""
        ...

    def read(self, item: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in the answer to the call `name`; `<code>: <detail>` where it cannot be used."""
        ...

    def pairs(self, item: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of an item with all answers."""
        ...


def reject_id(key: str) -> str:
    """The id that the item with this `item_key` has among the rejects: `SynthesisItem.key`."""
    return key.removesuffix("#0")


def item_key(pair: Mapping[str, Any]) -> str:
    """What tells the item that a pair is of from others, `passage#number`; an STS item has several pairs."""
    name = str(pair["id"])
    return name.rpartition("/")[0] if pair["dataset"] == dataset_of("sts") else name


def draw_requirement(
    seed: int, passage_id: str, languages: Mapping[str, float], words: Mapping[str, float]
) -> Requirement:
    """Length and language of an item's text: a pure function of (seed, passage id) and the distributions.

    Args:
        languages: code -> weight, as `weighted_languages` returns them.
        words: `low-high` -> weight, as `weighted_words` returns them.
    """
    language = choose(languages, unit_draw(seed, passage_id, "language"))
    return Requirement(choose(words, unit_draw(seed, passage_id, "words")), language, language_name(language))


def weighted_languages(languages: Mapping[str, float]) -> dict[str, float]:
    """Names or codes of languages -> weight, as codes -> weight.

    Raises:
        UserError: an unknown language, or weights that cannot be drawn from.
    """
    _check_weights("languages", languages)
    codes = {name: code for code, name in LANGUAGES.items()}
    weights: dict[str, float] = {}
    for key, weight in languages.items():
        code = codes.get(key) or check_language(key)
        weights[code] = weights.get(code, 0.0) + weight
    return weights


def weighted_words(words: Mapping[str, float]) -> dict[str, float]:
    """Query lengths `low-high` -> weight, checked.

    Raises:
        UserError: a range that is none, or weights that cannot be drawn from.
    """
    _check_weights("words", words)
    for key in words:
        bounds = re.fullmatch(r"(\d+)-(\d+)", key)
        if bounds is None or not 1 <= int(bounds[1]) <= int(bounds[2]):
            raise UserError(f"synthesize.words: {key!r} is no range of words; write low-high, e.g. 5-10")
    return dict(words)


def _check_weights(field: str, weights: Mapping[str, float]) -> None:
    if not weights or any(w < 0 for w in weights.values()) or not 0 < sum(weights.values()) < float("inf"):
        raise UserError(f"synthesize.{field}: {dict(weights)!r} needs weights of at least 0, one of them above 0")


def language_name(code: str) -> str:
    """The English name of a language code, with its script or region behind it."""
    primary, _, variant = code.partition("-")
    name = LANGUAGES.get(primary, primary)
    return f"{name} ({variant})" if variant else name


def choose(weights: Mapping[_Key, float], draw: float) -> _Key:
    """The key of `weights` whose share of the unit interval holds `draw`; keys in sorted order."""
    rest = draw * sum(weights.values())
    for key in sorted(weights):
        rest -= weights[key]
        if rest < 0:
            return key
    return max(k for k in weights if weights[k] > 0)
