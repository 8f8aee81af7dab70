"""Chats with a generator: what the prompts, schemas and answers of all tasks are made of, and the chat template.

Our prompts are a system turn, examples as user and assistant turns, and a request. Many templates refuse the system
role or leave it out without a word; its text then stands at the head of the first user turn instead. The template is
tried with the tokenizer alone, before an engine is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qwen3emb.core.errors import UserError
from qwen3emb.text.templates import control_ids

__all__ = [
    "ChatForm",
    "ChatRefused",
    "Message",
    "chat_form",
    "compact_json",
    "defused",
    "example_chat",
    "json_object",
    "longest_text",
    "object_schema",
    "one_line",
    "plain",
    "text_schema",
]

Message = dict[str, str]
"""One turn of a chat: `role` and `content`."""

_ROLES = ("system", "user", "assistant", "user")
_PROBE = [{"role": role, "content": f"marker{number}"} for number, role in enumerate(_ROLES)]


def defused(text: str, special_tokens: Iterable[str]) -> str:
    """`text` in which no special token of the chat format is left: a passage cannot end its own turn."""
    for token in special_tokens:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object that has exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def text_schema(most: int) -> dict[str, Any]:
    """JSON schema of a text of 1 to `most` characters."""
    return {"type": "string", "minLength": 1, "maxLength": most}


def longest_text(words: str) -> int:
    """Characters that a text of `low-high` words may have, generously; one that needs more is rambling."""
    return 10 * int(words.partition("-")[2]) + 20


def compact_json(content: dict[str, Any]) -> str:
    """An answer as the prompts show it: JSON without spaces."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def example_chat(task: str, example: str, answer: dict[str, Any], request: str) -> list[Message]:
    """Instructions, one example with its answer, and the request."""
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": example},
        {"role": "assistant", "content": compact_json(answer)},
        {"role": "user", "content": request},
    ]


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


def one_line(value: Any) -> str:
    """A text in one line; empty where there is none with a letter or digit."""
    return " ".join(value.split()) if isinstance(value, str) and any(c.isalnum() for c in value) else ""


class ChatRefused(ValueError):
    """The template does not take this chat; the text says why, in one line."""


@dataclass(frozen=True)
class ChatForm:
    """A generator's tokenizer and what its template makes of a system turn.

    Attributes:
        tokenizer: a Hugging Face tokenizer with a chat template.
        folded: the system turn's text goes before that of the first user turn.
    """

    tokenizer: Any
    folded: bool

    def text(self, messages: list[Message]) -> str:
        """The prompt, up to where the answer begins; no turn's text can end its turn.

        Raises:
            ChatRefused: the template fails at these turns, though it may take others.
        """
        safe = [turn | {"content": defused(turn["content"], self.control_tokens)} for turn in messages]
        turns = _folded(safe) if self.folded else safe
        form = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return str(self.tokenizer.apply_chat_template(turns, **form))
        except Exception as error:  # a template is a program of its own: it may raise anything
            raise ChatRefused(_reason(error)) from error

    @cached_property
    def control_tokens(self) -> list[str]:
        """What no text in a chat may spell, longest first."""
        backend = self.tokenizer.backend_tokenizer
        known, control = backend.get_added_tokens_decoder(), control_ids(backend)
        return sorted((known[number].content for number in control), key=len, reverse=True)


def chat_form(model: str, folder: str) -> ChatForm:
    """What works with the chat template of a generator.

    Args:
        model: its name in the config, for messages.
        folder: its directory, or a hub id.

    Raises:
        UserError: it has no tokenizer or chat template, or the template fails or leaves turns out in any form.
    """
    from qwen3emb.model.loading import load_tokenizer  # torch, which the driver does without

    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        raise UserError(f"models.generator {error}") from error
    if not tokenizer.chat_template:
        raise UserError(f"models.generator {model}: it has no chat template; name an instruction-tuned model")
    complaint = None
    for form in (ChatForm(tokenizer, folded=False), ChatForm(tokenizer, folded=True)):
        try:
            shown = form.text(_PROBE)
        except ChatRefused as error:
            complaint = str(error)
            continue
        lost = [turn["role"] for turn in _PROBE if turn["content"] not in shown]
        if not lost:
            return form
        complaint = f"it leaves out the turn of the {lost[0]}"
    raise UserError(
        f"models.generator {model}: its chat template cannot hold our prompts (a system turn, then user and "
        f"assistant turns): {complaint}"
    )


def _folded(messages: list[Message]) -> list[Message]:
    """The chat without a system turn, whose text stands before the first user turn's, a blank line between."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
