"""Retrieval: a search query that a persona would write for the passage, in two calls (paper section 3).

The configuration call chooses who asks (one of the passage's personas), what kind of question and how hard; the query
call writes it. Everything fixed comes first in a chat - instructions, then examples as earlier turns - so that an
engine with a prefix cache computes it once. The passage keeps its language, everything else is English.

`passage_last` gives each call a prompt of its own, with its instructions, examples and the person before the passage:
small models write best so. `passage_first` gives both calls, and all queries of a passage, one beginning: the
instructions and examples of both, then the passage; an engine with a prefix cache reads each passage once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.synthesis.chat import Message, json_object, plain
from qwen3emb.synthesis.gates import Gates
from qwen3emb.synthesis.tasks.item import Call, Requirement, SynthesisItem

__all__ = [
    "DIFFICULTIES",
    "EXAMPLE_QUERY",
    "QUESTION_TYPES",
    "Configuration",
    "Query",
    "Retrieval",
    "configuration_chat",
    "configuration_messages",
    "configuration_schema",
    "longest_query",
    "parse_configuration",
    "parse_query",
    "query_chat",
    "query_messages",
    "query_schema",
]

_CONFIGURATION_TOKENS = 64
_NAMES_PASSAGE = re.compile(r"\b(this|the|that|above) passage\b")
_COPIED_RATIO = 0.75  # likeness to the example from which a query is taken for a copy of it
_COPIED_RUN = 12  # words; a query that holds a longer run of the passage was copied, not written
_PASSAGE_FIRST = "passage_first"
_ACKNOWLEDGED = "Which of the two tasks?"

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
    """The answer of the configuration call; `persona` is the index of a candidate, from 0."""

    persona: int
    question_type: str
    difficulty: str


@dataclass(frozen=True)
class Query:
    """The answer of the query call."""

    text: str


def _options(choices: Mapping[str, str]) -> str:
    return "; ".join(f"{name} = {meaning}" for name, meaning in choices.items())


CONFIGURATION_TASK = f"""Decide who would search for a passage, and how. Answer in JSON.
Character: number of the person most likely to need the passage.
Question_Type: {_options(QUESTION_TYPES)}.
Difficulty: {_options(DIFFICULTIES)}.
Choose what suits the passage."""
"""Instructions of the configuration call."""

CONFIGURATION_EXAMPLES = (
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

QUERY_TASK = """You write search queries that find a given passage.
Write as the given person would type it, in your own words. Name the subject of the passage; never say \
"this passage" and never copy sentences. Follow type, length, language and difficulty. Answer in JSON."""
"""Instructions of the query call."""

QUERY_EXAMPLE = (
    "clip(value, low, high)\nLimit a number to a range. A value below low becomes low and one above high "
    "becomes high; every other value is returned as it is.",
    "a beekeeper who logs the temperature of his hives",
    Configuration(0, "acquire_knowledge", "high_school"),
    Requirement("5-10", "en", "English"),
    "How do I keep a number between a lower and an upper limit?",
)

EXAMPLE_QUERY = QUERY_EXAMPLE[-1]
"""The answer in the query prompt; a generator that repeats it has not read the passage."""

QUERY_PROMPT_TEXTS = (QUERY_TASK, QUERY_EXAMPLE[0], QUERY_EXAMPLE[1])
"""What else a generator may repeat of the query prompt."""

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

    def call(self, row: SynthesisItem) -> Call | None:
        """The next call; None when all answers are there."""
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
        """Take in an answer; `<code>: <detail>` where it cannot be used."""
        if name == "configuration":
            return row.keep(name, parse_configuration(answer, len(row.candidates)))
        parsed = parse_query(answer, row.shown, self._persona(row), row.requirement.words)
        if not isinstance(parsed, str):
            problem = self._gates.problem(parsed.text, row.shown, row.requirement)
            parsed = problem or parsed
        return row.keep(name, parsed)

    def pairs(self, row: SynthesisItem) -> list[dict[str, Any]]:
        """The pairs of an item with all answers."""
        chosen: Configuration = row.answers["configuration"]
        kinds = {"question_type": chosen.question_type, "difficulty": chosen.difficulty}
        return [row.pair(row.answers["query"].text, row.document, persona=self._persona(row), **kinds)]

    @staticmethod
    def _persona(row: SynthesisItem) -> str:
        chosen: Configuration = row.answers["configuration"]
        return row.candidates[chosen.persona]


def configuration_chat(order: str, passage: str, candidates: Sequence[str], draw: float) -> list[Message]:
    """The chat of the configuration call; arguments as of `configuration_messages`, `order` as above."""
    if order != _PASSAGE_FIRST:
        return configuration_messages(passage, candidates, draw)
    people = "\n".join(numbered(candidates))
    return _shared_chat(passage, f"Task CHOOSE. People:\n{people}")


def configuration_messages(passage: str, candidates: Sequence[str], draw: float = 0.0) -> list[Message]:
    """The chat of the configuration call.

    Args:
        passage: the text as it is to be shown (cut and defused).
        candidates: persona texts, best first; their numbers in the prompt start at 1.
        draw: in [0, 1), chooses which three of the examples are shown.
    """
    turns = [{"role": "system", "content": CONFIGURATION_TASK}]
    first = int(draw * len(CONFIGURATION_EXAMPLES))
    for place in range(first, first + _EXAMPLES_SHOWN):
        text, people, chosen = CONFIGURATION_EXAMPLES[place % len(CONFIGURATION_EXAMPLES)]
        turns.append({"role": "user", "content": _configuration_request(text, people)})
        turns.append({"role": "assistant", "content": configuration_answer(chosen)})
    return [*turns, {"role": "user", "content": _configuration_request(passage, candidates)}]


def _configuration_request(passage: str, candidates: Sequence[str]) -> str:
    people = "\n".join(numbered(candidates))
    return f"Passage: {passage}\nPeople:\n{people}"


def configuration_answer(chosen: Configuration) -> str:
    """What the configuration call is to answer."""
    answer = {
        "Character": chosen.persona + 1,
        "Question_Type": chosen.question_type,
        "Difficulty": chosen.difficulty,
    }
    return json.dumps(answer, separators=(",", ":"))


def configuration_schema(candidates: int) -> dict[str, Any]:
    """JSON schema of the configuration call's answer for a number of candidates, numbered from 1."""
    choices = {
        "Character": list(range(1, candidates + 1)),
        "Question_Type": list(QUESTION_TYPES),
        "Difficulty": list(DIFFICULTIES),
    }
    return {
        "type": "object",
        "properties": {name: {"enum": values} for name, values in choices.items()},
        "required": list(choices),
        "additionalProperties": False,
    }


def query_chat(
    order: str, passage: str, persona: str, configuration: Configuration, requirement: Requirement
) -> list[Message]:
    """The chat of the query call; arguments as of `query_messages`, `order` as above."""
    if order != _PASSAGE_FIRST:
        return query_messages(passage, persona, configuration, requirement)
    request = query_request(configuration, requirement)
    return _shared_chat(passage, f"Task WRITE. A person ({persona}) is looking for the passage. {request}")


def query_messages(passage: str, persona: str, configuration: Configuration, requirement: Requirement) -> list[Message]:
    """The chat of the query call.

    The person stands before the passage: with it behind, small models ask about the person.

    Args:
        passage: the text as it is to be shown (cut and defused).
        persona: the chosen persona's text.
        configuration: type and difficulty.
        requirement: length and language.
    """
    text, person, chosen, wanted, answer = QUERY_EXAMPLE
    return [
        {"role": "system", "content": QUERY_TASK},
        {"role": "user", "content": _query_request(text, person, chosen, wanted)},
        {"role": "assistant", "content": query_answer(answer)},
        {"role": "user", "content": _query_request(passage, persona, configuration, requirement)},
    ]


def _query_request(passage: str, persona: str, chosen: Configuration, wanted: Requirement) -> str:
    return f"A person ({persona}) is looking for this passage:\n\n{passage}\n\n{query_request(chosen, wanted)}"


def query_request(chosen: Configuration, wanted: Requirement) -> str:
    """What kind of query is asked for, in words."""
    return (
        f"Write {_REQUESTS[chosen.question_type]} about the subject of the passage above "
        f"({wanted.words} words, {wanted.language_name}, {chosen.difficulty} level: "
        f"{DIFFICULTIES[chosen.difficulty]})."
    )


def query_answer(query: str) -> str:
    """What the query call is to answer."""
    return json.dumps({"query": query}, separators=(",", ":"))


def query_schema(words: str) -> dict[str, Any]:
    """JSON schema of the query call's answer, for a length of `low-high` words."""
    return {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1, "maxLength": longest_query(words)}},
        "required": ["query"],
        "additionalProperties": False,
    }


def longest_query(words: str) -> int:
    """Characters that a query of `low-high` words may have, generously; one that needs more is rambling."""
    return 10 * int(words.partition("-")[2]) + 20


def numbered(people: Sequence[str]) -> list[str]:
    """Candidate personas as the prompts list them, from 1, one line each."""
    return [f"{number}. {' '.join(text.split())}" for number, text in enumerate(people, 1)]


def _shared_chat(passage: str, request: str) -> list[Message]:
    """The passage ends a turn of its own: what follows cannot change how it is split into tokens."""
    return [
        {"role": "system", "content": _shared_instructions()},
        {"role": "user", "content": f"Passage:\n\n{passage}"},
        {"role": "assistant", "content": _ACKNOWLEDGED},
        {"role": "user", "content": request},
    ]


@cache
def _shared_instructions() -> str:
    """Both tasks with their examples: the same text for every row and call."""
    parts = ["You get a passage, then one of two tasks.", f"Task CHOOSE. {CONFIGURATION_TASK}"]
    for text, people, chosen in CONFIGURATION_EXAMPLES[:3]:
        listed = "; ".join(numbered(people))
        parts.append(f"Example. Passage: {text} People: {listed} Answer: {configuration_answer(chosen)}")
    text, person, chosen, wanted, query = QUERY_EXAMPLE
    request = query_request(chosen, wanted)
    parts.append(f"Task WRITE. {QUERY_TASK}")
    parts.append(f"Example. Passage: {text} Person: {person}. {request} Answer: {query_answer(query)}")
    return "\n\n".join(parts)


def parse_configuration(answer: str, candidates: int) -> Configuration | str:
    """The configuration in an answer, or `<code>: <detail>`: why there is none."""
    content = json_object(answer)
    if isinstance(content, str):
        return content
    persona, kind, difficulty = (content.get(k) for k in ("Character", "Question_Type", "Difficulty"))
    if not isinstance(persona, int) or isinstance(persona, bool) or not 1 <= persona <= candidates:
        return f"bad_configuration: Character is {persona!r}, not 1 to {candidates}"
    if kind not in QUESTION_TYPES:
        return f"bad_configuration: Question_Type is {kind!r}"
    if difficulty not in DIFFICULTIES:
        return f"bad_configuration: Difficulty is {difficulty!r}"
    return Configuration(persona - 1, str(kind), str(difficulty))


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
    written = content.get("query")
    if not isinstance(written, str) or not any(c.isalnum() for c in written):
        return f"empty_query: {written!r}"
    text = " ".join(written.split())
    if len(written) >= longest_query(words):
        return f"too_long: {text}"
    said = plain(text)
    if _NAMES_PASSAGE.search(said):
        return f"names_passage: {text}"
    if _is_prompt(said, plain(persona)):
        return f"copied_prompt: {text}"
    if _is_passage(said, plain(passage)):
        return f"copied_passage: {text}"
    return Query(text)


def _is_prompt(query: str, persona: str) -> bool:
    example = plain(EXAMPLE_QUERY)
    if example in query or difflib.SequenceMatcher(None, query, example).ratio() > _COPIED_RATIO:
        return True
    fixed = (*map(plain, QUERY_PROMPT_TEXTS), persona)
    long_enough = query.count(" ") >= 3  # a word or two of the prompt may be the subject
    return long_enough and any(query in text or (text and text in query) for text in fixed)


def _is_passage(query: str, passage: str) -> bool:
    words = query.split()
    if query == passage:
        return True
    runs = (" ".join(words[i : i + _COPIED_RUN + 1]) for i in range(len(words) - _COPIED_RUN))
    return any(f" {run} " in f" {passage} " for run in runs)
