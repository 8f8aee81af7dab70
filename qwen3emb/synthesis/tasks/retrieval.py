"""Retrieval: a search query that a persona would write for the passage, in two calls (paper section 3).

The configuration call chooses who asks (one of the passage's personas), what kind of question and how hard; the query
call writes it. Everything fixed comes first in a chat - instructions, then examples as earlier turns - so that an
engine with a prefix cache computes it once. The passage keeps its language, everything else is English.

`passage_last` gives each call a prompt of its own, with its instructions, examples and the persona before the passage:
small models write best so. `passage_first` gives both calls, and all queries of a passage, one beginning: the
instructions and examples of both, then the passage; an engine with a prefix cache reads each passage once.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import (
    json_object,
    longest_text,
    one_line,
    plain,
)
from qwen3emb.synthesis.gates import Gates, copies_passage
from qwen3emb.synthesis.tasks.item import Call, SynthesisItem
from qwen3emb.synthesis.tasks.retrieval_prompts import (
    CONFIGURATION_KEYS,
    DIFFICULTIES,
    EXAMPLE_QUERY,
    QUERY_EXAMPLE,
    QUERY_TASK,
    QUESTION_TYPES,
    Configuration,
    configuration_chat,
    configuration_schema,
    query_chat,
    query_schema,
)

__all__ = ["Query", "Retrieval", "parse_configuration", "parse_query"]

_CONFIGURATION_TOKENS = 64
_NAMES_PASSAGE = re.compile(r"\b(this|the|that|above) passage\b")
_COPIED_RATIO = 0.75  # likeness to the example from which a query is taken for a copy of it


@dataclass(frozen=True)
class Query:
    """The answer of the query call."""

    text: str


class Retrieval:
    """Two calls: who asks and how, then the query."""

    def __init__(self, cfg: SynthesizeConfig, seed: int, gates: Gates) -> None:
        """Draws follow from `seed`; `gates` look at what was written."""
        self._cfg, self._seed, self._gates = cfg, seed, gates

    def call(self, item: SynthesisItem) -> Call | None:
        """The next call; None when all answers are there."""
        order = self._cfg.prompt_order
        if "configuration" not in item.answers:
            draw = unit_draw(self._seed, item.passage["id"], "examples")
            chat = configuration_chat(order, item.shown, item.personas, draw)
            return Call("configuration", chat, configuration_schema(len(item.personas)), _CONFIGURATION_TOKENS)
        if "query" not in item.answers:
            configuration, requirement = item.answers["configuration"], item.requirement
            chat = query_chat(order, item.shown, self._persona(item), configuration, requirement)
            return Call("query", chat, query_schema(requirement.words), self._cfg.max_query_tokens)
        return None

    def read(self, item: SynthesisItem, name: str, answer: str) -> str | None:
        """Take in an answer; `<code>: <detail>` where it cannot be used."""
        if name == "configuration":
            return item.keep(name, parse_configuration(answer, len(item.personas)))
        parsed = parse_query(answer, item.shown, self._persona(item), item.requirement.words)
        if not isinstance(parsed, str):
            asked = item.answers["configuration"].question_type
            parsed = self._gates.problem(parsed.text, item.shown, item.requirement, asked) or parsed
        return item.keep(name, parsed)

    def pairs(self, item: SynthesisItem) -> list[dict[str, Any]]:
        """The one pair of an item with both answers."""
        configuration: Configuration = item.answers["configuration"]
        kinds = {"question_type": configuration.question_type, "difficulty": configuration.difficulty}
        return [item.pair(item.answers["query"].text, item.document, persona=self._persona(item), **kinds)]

    @staticmethod
    def _persona(item: SynthesisItem) -> str:
        return str(item.personas[item.answers["configuration"].persona])


def parse_configuration(answer: str, personas: int) -> Configuration | str:
    """The configuration in an answer, or `<code>: <detail>`: why there is none."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    persona, question_type, difficulty = map(content.get, CONFIGURATION_KEYS)
    if not isinstance(persona, int) or isinstance(persona, bool) or not 1 <= persona <= personas:
        return f"bad_configuration: Character is {persona!r}, not 1 to {personas}"
    if question_type not in list(QUESTION_TYPES):  # as a list: the answer may hold what has no hash
        return f"bad_configuration: Question_Type is {question_type!r}"
    if difficulty not in list(DIFFICULTIES):
        return f"bad_configuration: Difficulty is {difficulty!r}"
    return Configuration(persona - 1, str(question_type), str(difficulty))


def parse_query(answer: str, passage: str, persona: str, words: str) -> Query | str:
    """The query in an answer, or `<code>: <detail>`: why it cannot be used.

    Codes: invalid_json, empty_query, too_long (it reached the schema's limit), names_passage (it speaks of
    "this passage" instead of its subject), copied_prompt (words of the instructions, of the example or of the
    persona), copied_passage (the passage, or a run of more than 12 of its words).

    Args:
        answer: what the generator wrote.
        passage: the text as it was shown.
        persona: the persona that asked.
        words: the length that was asked for, `low-high`.
    """
    content = json_object(answer)
    if isinstance(content, str):
        return content
    written: Any = content.get("query")
    text = one_line(written)
    if not text:
        return f"empty_query: {written!r}"
    if len(written) >= longest_text(words):
        return f"too_long: {text}"
    words_only = plain(text)
    if _NAMES_PASSAGE.search(words_only):
        return f"names_passage: {text}"
    if _copies_prompt(words_only, plain(persona)):
        return f"copied_prompt: {text}"
    if copies_passage(words_only, plain(passage)):
        return f"copied_passage: {text}"
    return Query(text)


def _copies_prompt(query: str, persona: str) -> bool:
    example = plain(EXAMPLE_QUERY)
    if example in query or difflib.SequenceMatcher(None, query, example).ratio() > _COPIED_RATIO:
        return True
    prompt_texts = (*map(plain, (QUERY_TASK, *QUERY_EXAMPLE[:2])), persona)
    long_enough = query.count(" ") >= 3  # a word or two of the prompt may be the subject
    return long_enough and any(query in text or (text and text in query) for text in prompt_texts)
