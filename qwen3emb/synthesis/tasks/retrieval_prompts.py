"""The prompts and answer schemas of the retrieval task's two calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen3emb.synthesis.chat import (
    Message,
    compact_json,
    example_chat,
    longest_text,
    object_schema,
    text_schema,
)
from qwen3emb.synthesis.tasks.item import Requirement

__all__ = [
    "CONFIGURATION_KEYS",
    "DIFFICULTIES",
    "EXAMPLE_QUERY",
    "QUERY_EXAMPLE",
    "QUERY_TASK",
    "QUESTION_TYPES",
    "Configuration",
    "configuration_chat",
    "configuration_schema",
    "query_chat",
    "query_schema",
]

CONFIGURATION_KEYS = ("Character", "Question_Type", "Difficulty")
"""Keys of the configuration call's answer."""

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


QUERY_TASK = """You write search queries that find a given passage.
Write as the given person would type it, in your own words. Name the subject of the passage; never say \
"this passage" and never copy sentences. Follow type, length, language and difficulty. Answer in JSON."""


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


_REQUESTS = {
    "keywords": "search keywords",
    "acquire_knowledge": "a how or what question",
    "summary": "a request for an overview",
    "yes_or_no": "a yes-or-no question",
    "background": "a why question",
}


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
    example = _looking_for(QUERY_EXAMPLE[0], QUERY_EXAMPLE[1], _query_request(*QUERY_EXAMPLE[2:4]))
    return example_chat(QUERY_TASK, example, {"query": EXAMPLE_QUERY}, _looking_for(passage, persona, request))


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
    text, persona, configuration, requirement, query = QUERY_EXAMPLE
    request = _query_request(configuration, requirement)
    parts.append(f"Task WRITE. {QUERY_TASK}")
    parts.append(f"Example. Passage: {text} Person: {persona}. {request} Answer: {compact_json({'query': query})}")
    return "\n\n".join(parts)


def _numbered(personas: Sequence[str]) -> list[str]:
    """Personas as the prompts list them, from 1, one line each."""
    return [f"{number}. {' '.join(text.split())}" for number, text in enumerate(personas, 1)]


def _configuration_request(passage: str, personas: Sequence[str]) -> str:
    return f"Passage: {passage}\nPeople:\n" + "\n".join(_numbered(personas))


def _configuration_answer(configuration: Configuration) -> str:
    values = (configuration.persona + 1, configuration.question_type, configuration.difficulty)
    return compact_json(dict(zip(CONFIGURATION_KEYS, values, strict=True)))


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
    return object_schema({key: {"enum": values} for key, values in zip(CONFIGURATION_KEYS, choices, strict=True)})


def query_schema(words: str) -> dict[str, Any]:
    """JSON schema of the query call's answer, for a length of `low-high` words."""
    return object_schema({"query": text_schema(longest_text(words))})
