"""Reading the generator's answers: a typed value, or the reason why there is none (paper section 3)."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

from qwen3emb.synthesis.prompts import (
    DIFFICULTIES,
    EXAMPLE_QUERY,
    QUERY_PROMPT_TEXTS,
    QUESTION_TYPES,
    Configuration,
    longest_query,
)

__all__ = ["Query", "json_object", "parse_configuration", "parse_query", "plain"]

_NAMES_PASSAGE = re.compile(r"\b(this|the|that|above) passage\b")
_COPIED_RATIO = 0.75  # likeness to the example from which a query is taken for a copy of it
_COPIED_RUN = 12  # words; a query that holds a longer run of the passage was copied, not written


@dataclass(frozen=True)
class Query:
    """The answer of the query call."""

    text: str


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


def json_object(answer: str) -> dict[str, Any] | str:
    """The JSON object that an answer is, or `invalid_json: <detail>`."""
    try:
        content = json.loads(answer)
    except ValueError:
        return f"invalid_json: {answer[:200]!r}"
    return content if isinstance(content, dict) else f"invalid_json: {answer[:200]!r}"


def plain(text: str) -> str:
    """Words only, in lower case, one space apart."""
    return " ".join(re.findall(r"\w+", text.lower()))


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
