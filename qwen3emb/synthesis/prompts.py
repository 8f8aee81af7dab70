"""The two prompts that turn a passage into a search query (paper section 3); `answers` reads what comes back.

The configuration call chooses who asks (one of the candidate personas), what kind of question and how hard;
the query call writes it. Both are chats in which everything fixed comes first - instructions, then examples
as earlier turns - so that an engine with a prefix cache computes it once. The passage keeps its language,
everything else is English.

`passage_last` gives each call a prompt of its own, with its instructions, examples and the person before the passage:
small models write best so. `passage_first` gives both calls, and all queries of a passage, one beginning: the
instructions and examples of both, then the passage; an engine with a prefix cache reads each passage once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen3emb.synthesis.requirements import Requirement

__all__ = [
    "CONFIGURATION_EXAMPLES",
    "CONFIGURATION_TASK",
    "DIFFICULTIES",
    "EXAMPLE_QUERY",
    "QUERY_EXAMPLE",
    "QUERY_PROMPT_TEXTS",
    "QUERY_TASK",
    "QUESTION_TYPES",
    "Configuration",
    "Message",
    "configuration_answer",
    "configuration_chat",
    "configuration_messages",
    "configuration_schema",
    "defused",
    "longest_query",
    "numbered",
    "query_answer",
    "query_chat",
    "query_messages",
    "query_request",
    "query_schema",
]

_PASSAGE_FIRST = "passage_first"
_ACKNOWLEDGED = "Which of the two tasks?"

Message = dict[str, str]
"""One turn of a chat: `role` and `content`."""

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


def longest_query(words: str) -> int:
    """Characters that a query of `low-high` words may have, generously; one that needs more is rambling."""
    return 10 * int(words.partition("-")[2]) + 20


def query_schema(words: str) -> dict[str, Any]:
    """JSON schema of the query call's answer, for a length of `low-high` words."""
    return {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1, "maxLength": longest_query(words)}},
        "required": ["query"],
        "additionalProperties": False,
    }


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


def configuration_answer(chosen: Configuration) -> str:
    """What the configuration call is to answer."""
    answer = {
        "Character": chosen.persona + 1,
        "Question_Type": chosen.question_type,
        "Difficulty": chosen.difficulty,
    }
    return json.dumps(answer, separators=(",", ":"))


def query_answer(query: str) -> str:
    """What the query call is to answer."""
    return json.dumps({"query": query}, separators=(",", ":"))


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


def numbered(people: Sequence[str]) -> list[str]:
    """Candidate personas as the prompts list them, from 1, one line each."""
    return [f"{number}. {' '.join(text.split())}" for number, text in enumerate(people, 1)]


def _configuration_request(passage: str, candidates: Sequence[str]) -> str:
    people = "\n".join(numbered(candidates))
    return f"Passage: {passage}\nPeople:\n{people}"


def _query_request(passage: str, persona: str, chosen: Configuration, wanted: Requirement) -> str:
    return f"A person ({persona}) is looking for this passage:\n\n{passage}\n\n{query_request(chosen, wanted)}"


def query_request(chosen: Configuration, wanted: Requirement) -> str:
    """What kind of query is asked for, in words."""
    return (
        f"Write {_REQUESTS[chosen.question_type]} about the subject of the passage above "
        f"({wanted.words} words, {wanted.language_name}, {chosen.difficulty} level: "
        f"{DIFFICULTIES[chosen.difficulty]})."
    )


def defused(text: str, special_tokens: Iterable[str]) -> str:
    """`text` in which no special token of the chat format is left: a passage cannot end its own turn."""
    for token in special_tokens:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def configuration_chat(order: str, passage: str, candidates: Sequence[str], draw: float) -> list[Message]:
    """The chat of the configuration call; arguments as of `configuration_messages`, `order` as above."""
    if order != _PASSAGE_FIRST:
        return configuration_messages(passage, candidates, draw)
    people = "\n".join(numbered(candidates))
    return _shared_chat(passage, f"Task CHOOSE. People:\n{people}")


def query_chat(
    order: str, passage: str, persona: str, configuration: Configuration, requirement: Requirement
) -> list[Message]:
    """The chat of the query call; arguments as of `query_messages`, `order` as above."""
    if order != _PASSAGE_FIRST:
        return query_messages(passage, persona, configuration, requirement)
    request = query_request(configuration, requirement)
    return _shared_chat(passage, f"Task WRITE. A person ({persona}) is looking for the passage. {request}")


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
