"""The two chats of a retrieval row in either order of their parts (paper section 3).

`passage_last` gives each call a prompt of its own, with its instructions, examples and the person before the passage:
small models write best so. `passage_first` gives both calls, and all queries of a passage, one beginning: the
instructions and examples of both, then the passage; an engine with a prefix cache reads each passage once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from qwen3emb.synthesis import prompts
from qwen3emb.synthesis.prompts import Configuration, Message
from qwen3emb.synthesis.requirements import Requirement

__all__ = ["configuration_chat", "query_chat"]

_FIRST = "passage_first"
_ACKNOWLEDGED = "Which of the two tasks?"


def configuration_chat(order: str, passage: str, candidates: Sequence[str], draw: float) -> list[Message]:
    """The chat of the configuration call; arguments as of `prompts.configuration_messages`, `order` as above."""
    if order != _FIRST:
        return prompts.configuration_messages(passage, candidates, draw)
    people = "\n".join(prompts.numbered(candidates))
    return _chat(passage, f"Task CHOOSE. People:\n{people}")


def query_chat(
    order: str, passage: str, character: str, configuration: Configuration, requirement: Requirement
) -> list[Message]:
    """The chat of the query call; arguments as of `prompts.query_messages`, `order` as above."""
    if order != _FIRST:
        return prompts.query_messages(passage, character, configuration, requirement)
    request = prompts.query_request(configuration, requirement)
    return _chat(passage, f"Task WRITE. A person ({character}) is looking for the passage. {request}")


def _chat(passage: str, request: str) -> list[Message]:
    """The passage ends a turn of its own: what follows cannot change how it is split into tokens."""
    return [
        {"role": "system", "content": _instructions()},
        {"role": "user", "content": f"Passage:\n\n{passage}"},
        {"role": "assistant", "content": _ACKNOWLEDGED},
        {"role": "user", "content": request},
    ]


@cache
def _instructions() -> str:
    """Both tasks with their examples: the same text for every row and call."""
    parts = ["You get a passage, then one of two tasks.", f"Task CHOOSE. {prompts.CONFIGURATION_TASK}"]
    for text, people, chosen in prompts.CONFIGURATION_EXAMPLES[:3]:
        listed = "; ".join(prompts.numbered(people))
        parts.append(f"Example. Passage: {text} People: {listed} Answer: {prompts.configuration_answer(chosen)}")
    text, person, chosen, wanted, query = prompts.QUERY_EXAMPLE
    request = prompts.query_request(chosen, wanted)
    parts.append(f"Task WRITE. {prompts.QUERY_TASK}")
    parts.append(f"Example. Passage: {text} Person: {person}. {request} Answer: {prompts.query_answer(query)}")
    return "\n\n".join(parts)
