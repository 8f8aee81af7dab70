"""A passage on its way to synthetic training data: what is known of it, and why it did not get there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qwen3emb.config.datasets import dataset_of
from qwen3emb.core.rejects import PAYLOAD_CHARACTERS, escaped
from qwen3emb.synthesis.requirements import Requirement

__all__ = ["Call", "SynthesisItem"]

_FINAL = {"prompt_too_long", "chat_template", "engine_died", "no_other_language"}  # asking again changes nothing


@dataclass(frozen=True)
class Call:
    """One question to the generator about a row: `name` tells it from the row's other calls."""

    name: str
    messages: list[dict[str, str]]
    schema: dict[str, Any]
    max_tokens: int


@dataclass
class SynthesisItem:
    """A passage on its way to pairs of one task.

    `candidates` are persona texts, best first; `number` counts the rows of the passage from 0; `problem` is why
    there is no pair yet, as `<code>: <detail>`, `settled` that this will not change; `shown` is the passage as
    prompts hold it, `answers` what the calls so far gave, by their names.
    """

    passage: dict[str, Any]
    document: str
    candidates: list[str]
    requirement: Requirement
    number: int = 0
    problem: str | None = None
    settled: bool = False
    task: str = "retrieval"
    shown: str = ""
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the draws of this row depend on: the passage's id, with the number of a further row."""
        return f"{self.passage['id']}#{self.number}" if self.number else str(self.passage["id"])

    def fail(self, problem: str) -> None:
        """Note why there is no pair."""
        self.problem = problem
        self.settled = problem.partition(":")[0] in _FINAL

    def done(self) -> None:
        """Note that all answers are there."""
        self.problem, self.settled = None, True

    def pair(self, query: str, document: str, **more: Any) -> dict[str, Any]:
        """A pair of the row (schema `records.PAIR`); `more` are further columns."""
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
        """The row as a reject."""
        return {
            "id": self.key,
            "stage": "synthesize",
            "reason": escaped(str(self.problem))[:PAYLOAD_CHARACTERS],
            "source": self.passage["source"],
            "row": -1,
            "payload": escaped(self.document),
        }
