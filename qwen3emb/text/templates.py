"""The formats of queries, documents and the reranker's input, and the yes / no ids (paper section 2, released models).

Training, mining, evaluation, export and serving all call these functions, so that a served score is the trained
score. Token ids are returned instead of strings where truncation matters: only the text of the user is ever cut,
never the template around it. What a user wrote (query, document, instruction) is text and nothing else: where it spells
a control token, the token's characters are tokenised, so that no text can close its own part of a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from qwen3emb.config.serving import EvaluateConfig, ServeConfig
from qwen3emb.config.training import TrainEmbeddingConfig
from qwen3emb.core.errors import UserError

__all__ = [
    "DEFAULT_INSTRUCTION",
    "DEFAULT_RERANK_INSTRUCTION",
    "EmbeddingTemplate",
    "RerankTemplate",
    "TextLimits",
    "TextTokenizer",
    "beginning",
    "control_ids",
    "query_prompt",
    "score_template",
    "token_id",
    "without_control_tokens",
]

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
DEFAULT_RERANK_INSTRUCTION = DEFAULT_INSTRUCTION

_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_RERANK_CONTROL = "<|im_start|>system\n" + _SYSTEM + "<|im_end|>\n<|im_start|>"  # up to the last control token
_RERANK_HEAD = _RERANK_CONTROL + "user\n"
_RERANK_TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class TextLimits(NamedTuple):
    """How many tokens a text may have, for queries and for documents.

    - A query that is embedded: `query`, counted with the prompt that its instruction makes, and the end token.
    - A document that is embedded, which has no instruction: `document`, counted with the end token.
    - A query that is judged by a reranker: `query`, counted alone, without the template around it.
    - A document that is judged: what the query and the template leave of the whole input's length, which is a limit
      of its own (`max_tokens`); served ones have `document` at most, counted alone.

    A longer text loses tokens from its end, nothing else is ever cut (`EmbeddingTemplate`, `RerankTemplate`).
    """

    query: int
    document: int

    @classmethod
    def of(cls, cfg: EvaluateConfig | ServeConfig | TrainEmbeddingConfig) -> TextLimits:
        """The limits of a section of the configuration."""
        return cls(cfg.max_query_tokens, cfg.max_document_tokens)


def query_prompt(instruction: str) -> str:
    """The prompt before a query: `Instruct: {instruction}\\nQuery:`, with no space after the colon."""
    return f"Instruct: {instruction}\nQuery:"


def beginning(tokenizer: Any, ids: Sequence[int], most: int) -> str:
    """The text of the first `most` tokens; a cut within a character leaves half of it, which is left out."""
    return str(tokenizer.decode(ids[:most])).rstrip("\ufffd")


def token_id(tokenizer: Any, token: str) -> int:
    """The id of `token` where the tokenizer knows it as one token.

    Raises:
        UserError: the tokenizer splits it or does not know it.
    """
    ids = _template_ids(tokenizer, token)
    if len(ids) != 1:
        raise UserError(f"the tokenizer splits {token!r} into {len(ids)} tokens; it must be one token")
    return int(ids[0])


def _template_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a template's text, in which control tokens are meant, even where the tokenizer was saved to split them."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False))


def control_ids(backend: Any) -> frozenset[int]:
    """Ids of the tokens that no user's text may produce: special ones, and other added ones in brackets (`<think>`).

    Added tokens that are words or runs of spaces are ordinary parts of a text.
    """
    known = backend.get_added_tokens_decoder()
    return frozenset(number for number, token in known.items() if token.special or _bracketed(token.content))


def _bracketed(token: str) -> bool:
    return len(token) > 2 and token[0] + token[-1] in ("<>", "[]")


def without_control_tokens(backend: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` that reads control tokens as the characters they are written with."""
    from tokenizers import Tokenizer

    content, control = json.loads(backend.to_str()), control_ids(backend)
    for token in content["added_tokens"]:
        token["special"] = token["id"] in control  # only special tokens can be read as text
    out = Tokenizer.from_str(json.dumps(content))
    out.encode_special_tokens = True
    out.no_truncation()
    out.no_padding()
    return out


class TextTokenizer:
    """Tokenises what users wrote, for templates and everything that counts tokens."""

    def __init__(self, tokenizer: Any) -> None:
        """Use a fast Hugging Face tokenizer."""
        self._tokenizer = tokenizer
        self.control = control_ids(tokenizer.backend_tokenizer)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, none of them a control token's.

        Texts in which the tokenizer finds a control token are tokenised again with its characters as plain text.
        """
        if not texts:
            return []
        batch = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False)["input_ids"]
        again = [i for i, ids in enumerate(batch) if not self.control.isdisjoint(ids)]
        if again:
            plain = self._plain.encode_batch([texts[i] for i in again], add_special_tokens=False)
            for i, encoding in zip(again, plain, strict=True):
                batch[i] = encoding.ids
        return list(batch)

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[Any]]:
        return TextTokenizer, (self._tokenizer,)  # a pickled one loses encode_special_tokens

    @cached_property
    def _plain(self) -> Any:
        return without_control_tokens(self._tokenizer.backend_tokenizer)  # takes a second with a large vocabulary


@dataclass(frozen=True)
class EmbeddingTemplate:
    """Token ids of queries and documents for one tokenizer.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        end_token: the token that the embedding is read at; `<|endoftext|>` for Qwen3, `<|im_end|>` for SmolLM2.
    """

    tokenizer: Any
    end_token: str

    @property
    def end_id(self) -> int:
        """The id of the end token."""
        return token_id(self.tokenizer, self.end_token)

    def prompt(self, instruction: str | None) -> list[int]:
        """Ids of the whole prompt of a task's queries, as it stands alone; empty without an instruction."""
        return self.text_tokenizer.ids([query_prompt(instruction)])[0] if instruction else []

    def queries(
        self, texts: Sequence[str], limits: TextLimits, instruction: str | None
    ) -> tuple[list[int], list[list[int]]]:
        """(shared prefix ids, leaf ids of each query), see `encode`."""
        return self.encode(texts, limits.query, instruction or None)

    def documents(self, texts: Sequence[str], limits: TextLimits) -> list[list[int]]:
        """Ids of each document with the end token, see `encode`; documents have no prefix."""
        return self.encode(texts, limits.document)[1]

    def encode(
        self, texts: Sequence[str], max_tokens: int, instruction: str | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """Split `texts` into (shared prefix ids, one list of leaf ids per text), each leaf with the end token.

        prefix + leaf are the ids of prompt and text tokenised as one, as the released models and other engines do it,
        at most `max_tokens` of them; the text loses tokens from its end, never the end token. A token may cross the
        border between the two (`:string` in Qwen3's vocabulary), so the prompt's last token is part of the leaves, and
        earlier ones are where a text changes them.

        Raises:
            UserError: `max_tokens` leaves no room for a text after the prompt.
        """
        prompt = self.prompt(instruction)
        if max_tokens - len(prompt) < 2:
            raise UserError(f"max_tokens {max_tokens} leaves no room after an instruction of {len(prompt)} tokens")
        end, before = self.end_id, query_prompt(instruction) if instruction else ""
        batch = self.text_tokenizer.ids([before + text for text in texts])
        prefix = prompt[:-1]
        while not all(ids[: len(prefix)] == prefix for ids in batch):
            prefix.pop()
        shared, most = len(prefix), max_tokens - 1
        return prefix, [[*ids[shared:most], end] for ids in batch]

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """What users' texts are tokenised with."""
        return TextTokenizer(self.tokenizer)


@dataclass(frozen=True)
class RerankTemplate:
    """Token ids of the yes / no reranker's input for one tokenizer (paper section 2).

    Attributes:
        tokenizer: a Hugging Face tokenizer with `<|im_start|>` and `<|im_end|>` as special tokens.
    """

    tokenizer: Any

    @property
    def yes_no(self) -> tuple[int, int]:
        """Ids of "yes" and "no".

        Raises:
            UserError: one of them is not a single token.
        """
        return token_id(self.tokenizer, "yes"), token_id(self.tokenizer, "no")

    @staticmethod
    def text(query: str, document: str, instruction: str | None = None) -> str:
        """The whole input as one string."""
        shared = RerankTemplate.shared_text(query, instruction)
        return f"{shared} {document}{_RERANK_TAIL}"

    @staticmethod
    def shared_text(query: str, instruction: str | None = None) -> str:
        """What all documents of one query share: system, instruction and query, up to `<Document>:`."""
        instruct = instruction or DEFAULT_RERANK_INSTRUCTION
        return f"{_RERANK_HEAD}<Instruct>: {instruct}\n<Query>: {query}\n<Document>:"

    def prefix(self, query: str, instruction: str | None = None, max_query_tokens: int | None = None) -> list[int]:
        """Ids of the shared part; a query longer than `max_query_tokens` loses its end."""
        if max_query_tokens is not None:
            ids = self.text_tokenizer.ids([query])[0]
            if len(ids) > max_query_tokens:
                query = beginning(self.tokenizer, ids, max_query_tokens)
        text = self.shared_text(query, instruction)
        whole = _template_ids(self.tokenizer, text)
        if self._controls(whole) == self._controls(self._head):
            return whole
        # the query or the instruction spells control tokens: only those of the head are meant
        return [*self._head, *self.text_tokenizer.ids([text.removeprefix(_RERANK_CONTROL)])[0]]

    def leaves(self, documents: Sequence[str], room: int) -> list[list[int]]:
        """Ids of ` {document}` + suffix for each document, at most `room` tokens each.

        Over-long documents lose tokens from their end; the suffix is never cut.

        Raises:
            UserError: the suffix alone does not fit.
        """
        tail = self._tail
        if room <= len(tail):
            raise UserError(f"{room} tokens are left for document and suffix, the suffix alone has {len(tail)}")
        texts = [f" {document}" for document in documents]
        return [[*ids[: room - len(tail)], *tail] for ids in self.text_tokenizer.ids(texts)]

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """What users' texts are tokenised with."""
        return TextTokenizer(self.tokenizer)

    @cached_property
    def _head(self) -> list[int]:
        return _template_ids(self.tokenizer, _RERANK_CONTROL)

    @cached_property
    def _tail(self) -> list[int]:
        return _template_ids(self.tokenizer, _RERANK_TAIL)

    def _controls(self, ids: Sequence[int]) -> int:
        return sum(map(self.text_tokenizer.control.__contains__, ids))


def score_template(instruction: str) -> str:
    """The reranker's input as a Jinja template over messages of the roles `query` and `document`.

    What vLLM's score runner, sentence-transformers' CrossEncoder and `apply_chat_template` render a pair with. The
    instruction is the variable `instruction`, else the message of the role `system`, else the argument.
    """

    def content(role: str) -> str:
        return f'messages | selectattr("role", "equalto", "{role}") | map(attribute="content") | first'

    whole = RerankTemplate.text("{query}", "{document}", "{instruction}")
    variables = {"{query}": content("query"), "{document}": content("document"), "{instruction}": "asked"}
    pieces = [piece for piece in re.split("({query}|{document}|{instruction})", whole) if piece]
    written = [
        f"({variables[piece]})" if piece in variables else json.dumps(piece, ensure_ascii=False) for piece in pieces
    ]
    default = json.dumps(instruction or DEFAULT_RERANK_INSTRUCTION, ensure_ascii=False)
    chosen = f"instruction | default(({content('system')}) | default({default}, true), true)"
    return f"{{%- set asked = {chosen} -%}}\n{{{{- {' ~ '.join(written)} -}}}}\n"
