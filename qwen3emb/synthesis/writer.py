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
    SynthesisTask,
    choose,
    draw_requirement,
    weighted_languages,
    weighted_words,
)
from qwen3emb.synthesis.tasks.retrieval import Retrieval
from qwen3emb.synthesis.tasks.sts import Sts

__all__ = ["QueryWriter", "synthesis_tasks"]


def synthesis_tasks(cfg: SynthesizeConfig, seed: int) -> dict[str, SynthesisTask]:
    """The tasks by the names that `synthesize.tasks` gives them."""
    gates = Gates(cfg.gates)
    return {
        "retrieval": Retrieval(cfg, seed, gates),
        "bitext": Bitext(cfg, seed, gates),
        "sts": Sts(cfg, seed, gates),
        "classification": Classification(cfg, seed, gates),
    }


class QueryWriter:
    """The calls of all tasks over items, on one engine.

    Attributes:
        tokens: what the engine has done so far: `prompt`, `cached` and `generated` tokens.
    """

    def __init__(self, engine: VllmEngine, cfg: SynthesizeConfig, seed: int) -> None:
        """Write on `engine`; seeds of the sampling follow from `seed`, the passage's id and the attempt."""
        self.tokens: Counter[str] = Counter()
        self._engine, self._cfg, self._seed = engine, cfg, seed
        self._tasks = synthesis_tasks(cfg, seed)
        self._languages, self._words = weighted_languages(cfg.languages), weighted_words(cfg.words)

    def items(self, passage: dict[str, Any], document: str, personas: list[str]) -> list[SynthesisItem]:
        """A passage (with its `problem`, if it has one) as its items, each with a task and personas of its own."""
        count, problem = self._cfg.queries_per_passage, passage.get("problem")
        items = []
        for number in range(count):
            key = f"{passage['id']}#{number}" if number else passage["id"]
            requirement = draw_requirement(self._seed, key, self._languages, self._words)
            item_personas = personas[number::count] or personas
            task = choose(self._cfg.tasks, unit_draw(self._seed, key, "task"))
            settled = problem is not None
            items.append(SynthesisItem(passage, document, item_personas, requirement, number, problem, settled, task))
        return items

    def write(self, items: Sequence[SynthesisItem]) -> None:
        """Give every item its pairs or a problem.

        Raises:
            EngineLost: the engine answers nothing any more.
        """
        for item in items:
            if not item.settled:
                item.shown = self._engine.shown(item.document)
                item.personas = [self._engine.shown(text) for text in item.personas]
        for attempt in range(self._cfg.max_retries + 1):
            waiting = [item for item in items if not item.settled]
            while waiting:
                waiting = self._round(waiting, attempt)

    def _round(self, items: Sequence[SynthesisItem], attempt: int) -> list[SynthesisItem]:
        """Each item's next call; the items that have another one to make."""
        calls: list[tuple[SynthesisItem, Call]] = []
        for item in items:
            call = self._tasks[item.task].call(item)
            if isinstance(call, Call):
                calls.append((item, call))
            elif call is None:
                item.done()
            else:
                item.fail(call)
        answers = self._ask([self._question(item, call, attempt) for item, call in calls])
        going_on = []
        for (item, call), answer in zip(calls, answers, strict=True):
            problem = answer.problem or self._tasks[item.task].read(item, call.name, answer.text)
            if problem:
                item.fail(problem)
            else:
                going_on.append(item)
        return going_on

    def _question(self, item: SynthesisItem, call: Call, attempt: int) -> Question:
        seed = int(unit_draw(self._seed, item.key, call.name, attempt) * 2**31)
        return Question(call.messages, call.schema, call.max_tokens, seed)

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers = self._engine.ask(questions) if questions else []
        for answer in answers:
            self.tokens["prompt"] += answer.prompt_tokens
            self.tokens["cached"] += answer.cached_tokens
            self.tokens["generated"] += answer.generated_tokens
        return answers

    def tables(self, items: Sequence[SynthesisItem]) -> tuple[pa.Table, pa.Table]:
        """The finished items as a table of pairs (schema `records.PAIR`) and one of rejects (`records.REJECT`)."""
        pairs = [pair for item in items if item.problem is None for pair in self._tasks[item.task].pairs(item)]
        rejects = [item.reject() for item in items if item.problem is not None]
        return pa.Table.from_pylist(pairs, schema=PAIR), pa.Table.from_pylist(rejects, schema=REJECT)
