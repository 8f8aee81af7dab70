"""What is asked of the generator for each task, call by call, and the pairs that come of the answers (paper section 3).

A writer looks at a row's answers so far: `call` is the next question, None when there is none left; `read` takes an
answer in or says what is wrong with it; `pairs` are the result.
"""

from __future__ import annotations

from typing import Any, Protocol

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.answers import parse_configuration, parse_query
from qwen3emb.synthesis.gates import Gates, word_count
from qwen3emb.synthesis.prompts import Configuration, configuration_chat, configuration_schema, query_chat, query_schema
from qwen3emb.synthesis.requirements import Requirement, choose, language_name, weighted_languages
from qwen3emb.synthesis.task_answers import NewTask, parse_class, parse_new_task, parse_rewrites, parse_translation
from qwen3emb.synthesis.task_prompts import (
    class_schema,
    drawn_sentence,
    label_messages,
    label_schema,
    new_task_messages,
    new_task_schema,
    rewrites_messages,
    rewrites_schema,
    text_messages,
    translation_messages,
    translation_schema,
)
from qwen3emb.synthesis.task_rows import Call, SynthesisItem
from qwen3emb.text.false_negatives import answers_of, true_negatives

__all__ = ["Writer", "writers"]

_CONFIGURATION_TOKENS = 64


class Writer(Protocol):
    """The calls of one task."""

    def call(self, row: SynthesisItem) -> Call | str | None:
        """The next call; None when all answers are there; a problem where nothing can be asked."""
        ...

    def read(self, row: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in the answer to the call `name`; `<code>: <detail>` where it cannot be used."""
        ...

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of a row with all answers."""
        ...


def writers(cfg: SynthesizeConfig, seed: int) -> dict[str, Writer]:
    """The writer of each task."""
    gates = Gates(cfg.gates)
    return {
        "retrieval": _Retrieval(cfg, seed, gates),
        "bitext": _Bitext(cfg, seed, gates),
        "sts": _Sts(cfg, seed, gates),
        "classification": _Classification(cfg, seed, gates),
    }


def _kept(row: SynthesisItem, name: str, parsed: Any) -> str | None:
    """Keep a parsed answer; return it instead where it is a problem."""
    if isinstance(parsed, str):
        return parsed
    row.answers[name] = parsed
    return None


def _like(sentence: str, language: str) -> Requirement:
    """A text of `language` about as long as `sentence`."""
    words = word_count(sentence)
    return Requirement(f"{max(1, int(words / 2))}-{int(2 * words) + 2}", language, language_name(language))


class _Task:
    def __init__(self, cfg: SynthesizeConfig, seed: int, gates: Gates) -> None:
        self._cfg, self._seed, self._gates = cfg, seed, gates

    def _sentence(self, row: SynthesisItem) -> str:
        return drawn_sentence(row.shown, unit_draw(self._seed, row.key, "sentence"))


class _Retrieval(_Task):
    """Two calls: who asks and how, then the query."""

    def call(self, row: SynthesisItem) -> Call | None:
        order = self._cfg.prompt_order
        if "configuration" not in row.answers:
            draw = unit_draw(self._seed, row.passage["id"], "examples")
            chat = configuration_chat(order, row.shown, row.candidates, draw)
            return Call("configuration", chat, configuration_schema(len(row.candidates)), _CONFIGURATION_TOKENS)
        if "query" not in row.answers:
            chat = query_chat(order, row.shown, self._persona(row), row.answers["configuration"], row.requirement)
            return Call("query", chat, query_schema(row.requirement.words), self._cfg.max_query_tokens)
        return None

    def read(self, row: SynthesisItem, name: str, answer: str) -> str | None:
        if name == "configuration":
            return _kept(row, name, parse_configuration(answer, len(row.candidates)))
        parsed = parse_query(answer, row.shown, self._persona(row), row.requirement.words)
        if not isinstance(parsed, str):
            problem = self._gates.problem(parsed.text, row.shown, row.requirement)
            parsed = problem or parsed
        return _kept(row, name, parsed)

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        chosen: Configuration = row.answers["configuration"]
        kinds = {"question_type": chosen.question_type, "difficulty": chosen.difficulty}
        return [row.pair(row.answers["query"].text, row.document, persona=self._persona(row), **kinds)]

    @staticmethod
    def _persona(row: SynthesisItem) -> str:
        chosen: Configuration = row.answers["configuration"]
        return row.candidates[chosen.persona]


class _Bitext(_Task):
    """One call: a sentence of the passage in another language."""

    def __init__(self, cfg: SynthesizeConfig, seed: int, gates: Gates) -> None:
        super().__init__(cfg, seed, gates)
        self._languages = weighted_languages(cfg.languages)

    def call(self, row: SynthesisItem) -> Call | str | None:
        if "translation" in row.answers:
            return None
        language = self._language(row)
        if not language:
            return f"no_other_language: synthesize.languages has none but the passage's, {row.passage['language']}"
        sentence = self._sentence(row)
        chat = translation_messages(sentence, language_name(language))
        return Call("translation", chat, translation_schema(sentence), 2 * self._cfg.max_query_tokens)

    def read(self, row: SynthesisItem, name: str, answer: str) -> str | None:
        sentence = self._sentence(row)
        parsed = parse_translation(answer, sentence)
        if not isinstance(parsed, str):
            parsed = self._gates.problem(parsed.text, sentence, _like(sentence, self._language(row))) or parsed
        return _kept(row, name, parsed)

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        translation = row.answers["translation"].text
        return [row.pair(self._sentence(row), translation, language=self._language(row), words="")]

    def _language(self, row: SynthesisItem) -> str:
        """Code of a language drawn from those that are not the passage's; empty where there is none."""
        own = str(row.passage["language"]).partition("-")[0]
        others = {code: w for code, w in self._languages.items() if code.partition("-")[0] != own and w > 0}
        return choose(others, unit_draw(self._seed, row.key, "language")) if others else ""


class _Sts(_Task):
    """One call: three rewrites of a sentence of the passage, from near to far, with scores."""

    def call(self, row: SynthesisItem) -> Call | None:
        if "rewrites" in row.answers:
            return None
        sentence, code = self._sentence(row), row.passage["language"]
        chat = rewrites_messages(sentence, language_name(code))
        return Call("rewrites", chat, rewrites_schema(sentence), 4 * self._cfg.max_query_tokens)

    def read(self, row: SynthesisItem, name: str, answer: str) -> str | None:
        sentence = self._sentence(row)
        parsed = parse_rewrites(answer, sentence)
        if isinstance(parsed, str):
            return parsed
        wanted = _like(sentence, str(row.passage["language"]))
        problems = (self._gates.problem(one.text, "", wanted) for one in parsed.values())
        return next(filter(None, problems), None) or _kept(row, name, parsed)

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        sentence, number = self._sentence(row), f"{row.passage['id']}#{row.number}"
        return [
            row.pair(
                sentence,
                one.text,
                id=f"{number}/{name}",
                grade=one.score,
                language=row.passage["language"],
                words="",
            )
            for name, one in row.answers["rewrites"].items()
        ]


class _Classification(_Task):
    """A passage with one of the given label sets (one call), or a task and a text of the generator's own (two)."""

    def call(self, row: SynthesisItem) -> Call | None:
        task = self._task(row)
        if task is None:
            who = row.candidates[0] if row.candidates else "anybody"
            return Call("task", new_task_messages(row.shown, who), new_task_schema(), 2 * self._cfg.max_query_tokens)
        if "class" in row.answers:
            return None
        if "task" not in row.answers:
            return Call("class", label_messages(row.shown, task.task, task.labels), label_schema(task.labels), 96)
        wanted = row.requirement
        chat = text_messages(task.task, task.labels, wanted.words, wanted.language_name)
        return Call("class", chat, class_schema(task.labels, wanted.words), 2 * self._cfg.max_query_tokens)

    def read(self, row: SynthesisItem, name: str, answer: str) -> str | None:
        if name == "task":
            return _kept(row, name, parse_new_task(answer))
        task = self._task(row)
        assert task is not None
        parsed = parse_class(answer, task.labels, written="task" in row.answers)
        if not isinstance(parsed, str) and parsed.text:
            parsed = self._gates.problem(parsed.text, "", row.requirement) or parsed
        return _kept(row, name, parsed)

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        task, choice = self._task(row), row.answers["class"]
        assert task is not None
        text = choice.text or row.document
        wrong = [choice.misleading, *(one for one in task.labels if one not in (choice.label, choice.misleading))]
        query = f"{task.task}\n{text}"
        kept, _ = true_negatives(query, wrong, answers_of([(query, choice.label)]))  # labels may differ in form only
        pair = row.pair(query, choice.label, negatives=[wrong[place] for place in kept])
        return [pair if choice.text else pair | {"language": row.passage["language"], "words": ""}]

    def _task(self, row: SynthesisItem) -> NewTask | None:
        """The task of the row: drawn from the configured label sets, or what the generator invented."""
        sets = self._cfg.label_sets
        if sets and unit_draw(self._seed, row.key, "label set") < self._cfg.label_sets_share:
            names = sorted(sets)
            name = names[int(unit_draw(self._seed, row.key, "which label set") * len(names))]
            return NewTask(name, tuple(sets[name]))
        invented: NewTask | None = row.answers.get("task")
        return invented
