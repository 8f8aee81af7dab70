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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import (
    Message,
    compact_json,
    example_chat,
    json_object,
    longest_text,
    object_schema,
    one_line,
    plain,
    text_schema,
)
from qwen3emb.synthesis.gates import Gates, copies_passage
from qwen3emb.synthesis.tasks.item import Call, Requirement, SynthesisItem

__all__ = [
    "DIFFICULTIES",
    "EXAMPLE_QUERY",
    "QUESTION_TYPES",
    "Configuration",
    "Query",
    "Retrieval",
    "configuration_chat",
    "configuration_schema",
    "parse_configuration",
    "parse_query",
    "query_chat",
    "query_schema",
]

_CONFIGURATION_TOKENS = 64
_CONFIGURATION_KEYS = ("Character", "Question_Type", "Difficulty")
_NAMES_PASSAGE = re.compile(r"\b(this|the|that|above) passage\b")
_COPIED_RATIO = 0.75  # likeness to the example from which a query is taken for a copy of it
_PASSAGE_FIRST = "passage_first"

QUESTION_TYPES = {
    "keywords": "a few search words, not a sentence",
    "acquire_knowledge": "a question that wants to learn how or what",
    "summary": "a request for an overview of the subject",
    "yes_or_no": "a question that yes or no answers",
    "background": "a question about reasons, history or context",
}
"""What is asked for, with the words that explain it to the generator."""

DIFFICULTIES = {
    "high_school": "everyday words",
    "university": "terms of the field",
    "phd": "an expert's precise point",
}
"""How hard the query is, with the words that explain it to the generator."""


@dataclass(frozen=True)
class Configuration:
    """The answer of the configuration call; `persona` is the index among the item's personas, from 0."""

    persona: int
    question_type: str
    difficulty: str


@dataclass(frozen=True)
class Query:
    """The answer of the query call."""

    text: str


def _options(choices: Mapping[str, str]) -> str:
    return "; ".join(f"{name} = {meaning}" for name, meaning in choices.items())


_CONFIGURATION_TASK = f"""Decide who would search for a passage, and how. Answer in JSON.
Character: number of the person most likely to need the passage.
Question_Type: {_options(QUESTION_TYPES)}.
Difficulty: {_options(DIFFICULTIES)}.
Choose what suits the passage."""

_CONFIGURATION_EXAMPLES = (
    (
        "Rye dough tears when it is kneaded like wheat, since its gluten is weak.",
        ("A village postman", "A baker's apprentice"),
        Configuration(1, "acquire_knowledge", "high_school"),
    ),
    (
        "Der Pegel der Elbe stieg 2002 in Dresden auf 9,40 Meter.",
        ("A flood historian", "A dance teacher"),
        Configuration(0, "background", "phd"),
    ),
    (
        "Ferry tickets: adults 4.20, bicycles 2, dogs free. Last boat 22:15.",
        ("A geologist", "A nurse", "A cycling tourist"),
        Configuration(2, "keywords", "high_school"),
    ),
    (
        "Concrete below 5 degrees sets slowly and must be covered for three days.",
        ("A site engineer", "A florist"),
        Configuration(0, "yes_or_no", "university"),
    ),
    (
        "Lichens join a fungus, which holds water, and an alga, which makes sugar.",
        ("A truck driver", "A chess coach", "A botany student"),
        Configuration(2, "summary", "university"),
    ),
)
_EXAMPLES_SHOWN = 3  # neighbours of the list above: small models repeat the last one they saw

_QUERY_TASK = """You write search queries that find a given passage.
Write as the given person would type it, in your own words. Name the subject of the passage; never say \
"this passage" and never copy sentences. Follow type, length, language and difficulty. Answer in JSON."""

_QUERY_EXAMPLE = (
    "clip(value, low, high)\nLimit a number to a range. A value below low becomes low and one above high "
    "becomes high; every other value is returned as it is.",
    "a beekeeper who logs the temperature of his hives",
    Configuration(0, "acquire_knowledge", "high_school"),
    Requirement("5-10", "en", "English"),
    "How do I keep a number between a lower and an upper limit?",
)
EXAMPLE_QUERY = _QUERY_EXAMPLE[-1]
"""The answer in the query prompt; a generator that repeats it has not read the passage."""

_REQUESTS = {
    "keywords": "search keywords",
    "acquire_knowledge": "a how or what question",
    "summary": "a request for an overview",
    "yes_or_no": "a yes-or-no question",
    "background": "a why question",
}


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


def configuration_chat(order: str, passage: str, personas: Sequence[str], draw: float = 0.0) -> list[Message]:
    """The chat of the configuration call.

    Args:
        order: `passage_first` or `passage_last`, as above.
        passage: the text as it is to be shown (cut and defused).
        personas: of the passage, best first; their numbers in the prompt start at 1.
        draw: in [0, 1), chooses which three of the examples `passage_last` shows.
    """
    if order == _PASSAGE_FIRST:
        return _shared_chat(passage, "Task CHOOSE. People:\n" + "\n".join(_numbered(personas)))
    turns = [{"role": "system", "content": _CONFIGURATION_TASK}]
    first = int(draw * len(_CONFIGURATION_EXAMPLES))
    for place in range(first, first + _EXAMPLES_SHOWN):
        text, example_personas, configuration = _CONFIGURATION_EXAMPLES[place % len(_CONFIGURATION_EXAMPLES)]
        turns.append({"role": "user", "content": _configuration_request(text, example_personas)})
        turns.append({"role": "assistant", "content": _configuration_answer(configuration)})
    return [*turns, {"role": "user", "content": _configuration_request(passage, personas)}]


def query_chat(
    order: str, passage: str, persona: str, configuration: Configuration, requirement: Requirement
) -> list[Message]:
    """The chat of the query call.

    The persona stands before the passage in `passage_last`: with it behind, small models ask about the persona.

    Args:
        order: `passage_first` or `passage_last`, as above.
        passage: the text as it is to be shown (cut and defused).
        persona: the chosen persona's text.
        configuration: type and difficulty.
        requirement: length and language.
    """
    request = _query_request(configuration, requirement)
    if order == _PASSAGE_FIRST:
        return _shared_chat(passage, f"Task WRITE. A person ({persona}) is looking for the passage. {request}")
    example = _looking_for(_QUERY_EXAMPLE[0], _QUERY_EXAMPLE[1], _query_request(*_QUERY_EXAMPLE[2:4]))
    return example_chat(_QUERY_TASK, example, {"query": EXAMPLE_QUERY}, _looking_for(passage, persona, request))


def _shared_chat(passage: str, request: str) -> list[Message]:
    """The passage ends a turn of its own: what follows cannot change how it is split into tokens."""
    return [
        {"role": "system", "content": _shared_instructions()},
        {"role": "user", "content": f"Passage:\n\n{passage}"},
        {"role": "assistant", "content": "Which of the two tasks?"},
        {"role": "user", "content": request},
    ]


@cache
def _shared_instructions() -> str:
    """Both tasks with their examples: the same text for every item and call."""
    parts = ["You get a passage, then one of two tasks.", f"Task CHOOSE. {_CONFIGURATION_TASK}"]
    for text, personas, configuration in _CONFIGURATION_EXAMPLES[:_EXAMPLES_SHOWN]:
        listed = "; ".join(_numbered(personas))
        parts.append(f"Example. Passage: {text} People: {listed} Answer: {_configuration_answer(configuration)}")
    text, persona, configuration, requirement, query = _QUERY_EXAMPLE
    request = _query_request(configuration, requirement)
    parts.append(f"Task WRITE. {_QUERY_TASK}")
    parts.append(f"Example. Passage: {text} Person: {persona}. {request} Answer: {compact_json({'query': query})}")
    return "\n\n".join(parts)


def _numbered(personas: Sequence[str]) -> list[str]:
    """Personas as the prompts list them, from 1, one line each."""
    return [f"{number}. {' '.join(text.split())}" for number, text in enumerate(personas, 1)]


def _configuration_request(passage: str, personas: Sequence[str]) -> str:
    return f"Passage: {passage}\nPeople:\n" + "\n".join(_numbered(personas))


def _configuration_answer(configuration: Configuration) -> str:
    values = (configuration.persona + 1, configuration.question_type, configuration.difficulty)
    return compact_json(dict(zip(_CONFIGURATION_KEYS, values, strict=True)))


def _query_request(configuration: Configuration, requirement: Requirement) -> str:
    """What kind of query is asked for, in words."""
    return (
        f"Write {_REQUESTS[configuration.question_type]} about the subject of the passage above "
        f"({requirement.words} words, {requirement.language_name}, {configuration.difficulty} level: "
        f"{DIFFICULTIES[configuration.difficulty]})."
    )


def _looking_for(passage: str, persona: str, request: str) -> str:
    return f"A person ({persona}) is looking for this passage:\n\n{passage}\n\n{request}"


def configuration_schema(personas: int) -> dict[str, Any]:
    """JSON schema of the configuration call's answer for a number of personas, numbered from 1."""
    choices = (list(range(1, personas + 1)), list(QUESTION_TYPES), list(DIFFICULTIES))
    return object_schema({key: {"enum": values} for key, values in zip(_CONFIGURATION_KEYS, choices, strict=True)})


def query_schema(words: str) -> dict[str, Any]:
    """JSON schema of the query call's answer, for a length of `low-high` words."""
    return object_schema({"query": text_schema(longest_text(words))})


def parse_configuration(answer: str, personas: int) -> Configuration | str:
    """The configuration in an answer, or `<code>: <detail>`: why there is none."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    persona, question_type, difficulty = map(content.get, _CONFIGURATION_KEYS)
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
    prompt_texts = (*map(plain, (_QUERY_TASK, *_QUERY_EXAMPLE[:2])), persona)
    long_enough = query.count(" ") >= 3  # a word or two of the prompt may be the subject
    return long_enough and any(query in text or (text and text in query) for text in prompt_texts)
