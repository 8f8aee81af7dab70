"""A block of passages into queries or rejects: two calls per passage, asked again where the answer is bad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qwen3emb.config_data import SynthesizeConfig
from qwen3emb.data.answers import parse_configuration, parse_query
from qwen3emb.data.gates import Gates
from qwen3emb.data.prompts import (
    Configuration,
    configuration_messages,
    configuration_schema,
    query_messages,
    query_schema,
)
from qwen3emb.data.requirements import (
    Requirement,
    draw_requirement,
    unit_draw,
    weighted_languages,
    weighted_words,
)
from qwen3emb.data.rows import PAYLOAD_CHARACTERS, escaped
from qwen3emb.distributed.vllm_engine import Answer, Question, VllmEngine
from qwen3emb.records import PAIR, REJECT

__all__ = ["QueryWriter", "Row", "tables"]

_CONFIGURATION_TOKENS = 64
_FINAL = {"prompt_too_long", "engine_died"}  # asking again changes nothing


@dataclass
class Row:
    """A passage on its way to a query.

    `candidates` are persona texts, best first; `number` counts the queries of the passage from 0; `problem` is why
    there is no query yet, as `<code>: <detail>`, `settled` that this will not change.
    """

    passage: dict[str, Any]
    document: str
    candidates: list[str]
    requirement: Requirement
    number: int = 0
    problem: str | None = None
    settled: bool = False
    shown: str = ""
    configuration: Configuration | None = None
    query: str = ""

    @property
    def key(self) -> str:
        """What the draws of this row depend on: the passage's id, with the number of a further query."""
        return f"{self.passage['id']}#{self.number}" if self.number else str(self.passage["id"])

    @property
    def character(self) -> str:
        """The persona that asks; empty before the configuration call."""
        return self.candidates[self.configuration.character] if self.configuration else ""

    def fail(self, problem: str) -> None:
        """Note why there is no query."""
        self.problem = problem
        self.settled = problem.partition(":")[0] in _FINAL

    def pair(self) -> dict[str, Any]:
        """The row as a synthetic pair."""
        assert self.configuration is not None
        return {
            "id": f"{self.passage['id']}#{self.number}",
            "query": self.query,
            "document": self.document,
            "document_id": self.passage["id"],
            "origin": "synthetic",
            "language": self.requirement.language,
            "character": self.character,
            "question_type": self.configuration.question_type,
            "difficulty": self.configuration.difficulty,
            "words": self.requirement.words,
            "score": None,
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


class QueryWriter:
    """The two calls over rows, on one engine.

    Attributes:
        tokens: what the engine has done so far: `prompt`, `cached` and `generated` tokens.
    """

    def __init__(self, engine: VllmEngine, cfg: SynthesizeConfig, seed: int) -> None:
        """Write on `engine`; seeds of the sampling follow from `seed`, the passage's id and the attempt."""
        self.tokens: Counter[str] = Counter()
        self._engine, self._cfg, self._seed = engine, cfg, seed
        self._gates = Gates(cfg.gates)
        self._languages, self._words = weighted_languages(cfg.languages), weighted_words(cfg.words)

    def rows(self, passage: dict[str, Any], document: str, candidates: list[str]) -> list[Row]:
        """A passage (with its `problem`, if it has one) as one row per query, each with personas of its own."""
        count, problem = self._cfg.queries_per_passage, passage.get("problem")
        found = []
        for number in range(count):
            key = f"{passage['id']}#{number}" if number else passage["id"]
            wanted = draw_requirement(self._seed, key, self._languages, self._words)
            own = candidates[number::count] or candidates
            found.append(Row(passage, document, own, wanted, number, problem, settled=problem is not None))
        return found

    def write(self, rows: Sequence[Row]) -> None:
        """Give every row a query or a problem.

        Raises:
            EngineLost: the engine answers nothing any more.
        """
        for row in rows:
            if not row.settled:
                row.shown = self._engine.shown(row.document)
                row.candidates = [self._engine.shown(text) for text in row.candidates]
        for attempt in range(self._cfg.max_retries + 1):
            waiting = [row for row in rows if not row.settled]
            self._configure([row for row in waiting if row.configuration is None], attempt)
            self._query([row for row in waiting if row.configuration is not None], attempt)

    def _configure(self, rows: Sequence[Row], attempt: int) -> None:
        questions = [
            Question(
                configuration_messages(row.shown, row.candidates, unit_draw(self._seed, row.passage["id"], "examples")),
                configuration_schema(len(row.candidates)),
                _CONFIGURATION_TOKENS,
                self._draw(row, "configuration", attempt),
            )
            for row in rows
        ]
        for row, answer in zip(rows, self._ask(questions), strict=True):
            parsed = answer.problem or parse_configuration(answer.text, len(row.candidates))
            if isinstance(parsed, Configuration):
                row.configuration = parsed
            else:
                row.fail(parsed)

    def _query(self, rows: Sequence[Row], attempt: int) -> None:
        questions = [
            Question(
                query_messages(row.shown, row.character, row.configuration, row.requirement),
                query_schema(row.requirement.words),
                self._cfg.max_query_tokens,
                self._draw(row, "query", attempt),
            )
            for row in rows
            if row.configuration is not None
        ]
        for row, answer in zip(rows, self._ask(questions), strict=True):
            parsed = answer.problem or parse_query(answer.text, row.shown, row.character, row.requirement.words)
            if isinstance(parsed, str):
                row.fail(parsed)
            elif problem := self._gates.problem(parsed.text, row.shown, row.requirement):
                row.fail(problem)
            else:
                row.query, row.problem, row.settled = parsed.text, None, True

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers = self._engine.ask(questions)
        for answer in answers:
            self.tokens["prompt"] += answer.prompt_tokens
            self.tokens["cached"] += answer.cached_tokens
            self.tokens["generated"] += answer.generated_tokens
        return answers

    def _draw(self, row: Row, call: str, attempt: int) -> int:
        return int(self._unit(row, call, attempt) * 2**31)

    def _unit(self, row: Row, *what: object) -> float:
        return unit_draw(self._seed, row.key, *what)


def tables(rows: Sequence[Row]) -> tuple[pa.Table, pa.Table]:
    """The finished rows as a table of pairs (schema `records.PAIR`) and one of rejects (`records.REJECT`)."""
    pairs = [row.pair() for row in rows if row.problem is None]
    rejects = [row.reject() for row in rows if row.problem is not None]
    return pa.Table.from_pylist(pairs, schema=PAIR), pa.Table.from_pylist(rejects, schema=REJECT)
