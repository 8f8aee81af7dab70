"""A block of passages into pairs or rejects on one engine: each task's calls, asked again where an answer is bad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.synthesis.engine import Answer, Question, VllmEngine
from qwen3emb.synthesis.gates import Gates
from qwen3emb.synthesis.tasks.bitext import Bitext
from qwen3emb.synthesis.tasks.classification import Classification
from qwen3emb.synthesis.tasks.item import (
    Call,
    SynthesisItem,
    Writer,
    choose,
    draw_requirement,
    weighted_languages,
    weighted_words,
)
from qwen3emb.synthesis.tasks.retrieval import Retrieval
from qwen3emb.synthesis.tasks.sts import Sts

__all__ = ["QueryWriter", "writers"]


def writers(cfg: SynthesizeConfig, seed: int) -> dict[str, Writer]:
    """The writer of each task."""
    gates = Gates(cfg.gates)
    return {
        "retrieval": Retrieval(cfg, seed, gates),
        "bitext": Bitext(cfg, seed, gates),
        "sts": Sts(cfg, seed, gates),
        "classification": Classification(cfg, seed, gates),
    }


class QueryWriter:
    """The calls of all tasks over rows, on one engine.

    Attributes:
        tokens: what the engine has done so far: `prompt`, `cached` and `generated` tokens.
    """

    def __init__(self, engine: VllmEngine, cfg: SynthesizeConfig, seed: int) -> None:
        """Write on `engine`; seeds of the sampling follow from `seed`, the passage's id and the attempt."""
        self.tokens: Counter[str] = Counter()
        self._engine, self._cfg, self._seed = engine, cfg, seed
        self._writers: dict[str, Writer] = writers(cfg, seed)
        self._languages, self._words = weighted_languages(cfg.languages), weighted_words(cfg.words)

    def rows(self, passage: dict[str, Any], document: str, candidates: list[str]) -> list[SynthesisItem]:
        """A passage (with its `problem`, if it has one) as its rows, each with a task and personas of its own."""
        count, problem = self._cfg.queries_per_passage, passage.get("problem")
        found = []
        for number in range(count):
            key = f"{passage['id']}#{number}" if number else passage["id"]
            wanted = draw_requirement(self._seed, key, self._languages, self._words)
            own = candidates[number::count] or candidates
            task = choose(self._cfg.tasks, unit_draw(self._seed, key, "task"))
            found.append(SynthesisItem(passage, document, own, wanted, number, problem, problem is not None, task))
        return found

    def write(self, rows: Sequence[SynthesisItem]) -> None:
        """Give every row its pairs or a problem.

        Raises:
            EngineLost: the engine answers nothing any more.
        """
        for row in rows:
            if not row.settled:
                row.shown = self._engine.shown(row.document)
                row.candidates = [self._engine.shown(text) for text in row.candidates]
        for attempt in range(self._cfg.max_retries + 1):
            waiting = [row for row in rows if not row.settled]
            while waiting:
                waiting = self._round(waiting, attempt)

    def _round(self, rows: Sequence[SynthesisItem], attempt: int) -> list[SynthesisItem]:
        """Each row's next call; the rows that have another one to make."""
        asked: list[tuple[SynthesisItem, Call]] = []
        for row in rows:
            call = self._writers[row.task].call(row)
            if isinstance(call, Call):
                asked.append((row, call))
            elif call is None:
                row.done()
            else:
                row.fail(call)
        answers = self._ask([self._question(row, call, attempt) for row, call in asked])
        going_on = []
        for (row, call), answer in zip(asked, answers, strict=True):
            problem = answer.problem or self._writers[row.task].read(row, call.name, answer.text)
            if problem:
                row.fail(problem)
            else:
                going_on.append(row)
        return going_on

    def _question(self, row: SynthesisItem, call: Call, attempt: int) -> Question:
        seed = int(unit_draw(self._seed, row.key, call.name, attempt) * 2**31)
        return Question(call.messages, call.schema, call.max_tokens, seed)

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers = self._engine.ask(questions) if questions else []
        for answer in answers:
            self.tokens["prompt"] += answer.prompt_tokens
            self.tokens["cached"] += answer.cached_tokens
            self.tokens["generated"] += answer.generated_tokens
        return answers

    def tables(self, rows: Sequence[SynthesisItem]) -> tuple[pa.Table, pa.Table]:
        """The finished rows as a table of pairs (schema `records.PAIR`) and one of rejects (`records.REJECT`)."""
        pairs = [pair for row in rows if row.problem is None for pair in self._writers[row.task].pairs(row)]
        rejects = [row.reject() for row in rows if row.problem is not None]
        return pa.Table.from_pylist(pairs, schema=PAIR), pa.Table.from_pylist(rejects, schema=REJECT)
