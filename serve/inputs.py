"""Requests to token ids: templates, length limits, exact token counts. Imports no ray.

The ingress does this, so that a request that is too long is refused before a model sees it, and so that replicas
receive token ids with the template already applied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.model.contract import read_contract
from qwen3emb.model.loading import load_tokenizer
from qwen3emb.text.templates import DEFAULT_RERANK_INSTRUCTION, EmbeddingTemplate, RerankTemplate, TextLimits
from serve.schema import MAX_TOKENS, EmbeddingRequest, bad_request

__all__ = ["EmbeddingInputs", "Prepared", "RerankInputs"]

_UNLIMITED = 1 << 40
_HINT = "shorten it, or set truncate to true to lose its end"


@dataclass(frozen=True)
class Prepared:
    """Token ids of one request.

    Attributes:
        prefix: token ids that all inputs begin with.
        leaves: the token ids of each input after the prefix, in order.
        truncated: indices of the inputs that were cut.
    """

    prefix: list[int]
    leaves: list[list[int]]
    truncated: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of all inputs as the model sees them, template included."""
        return sum(len(self.prefix) + len(leaf) for leaf in self.leaves)


@dataclass(frozen=True)
class EmbeddingInputs:
    """Prepares the inputs of embedding requests.

    Attributes:
        template: of the model.
        instruction: for queries without an instruction in their request.
        limits: longest query and document, in tokens.
        dimensions: length of the model's full vector.
    """

    template: EmbeddingTemplate
    instruction: str
    limits: TextLimits
    dimensions: int

    @staticmethod
    def of_model(model_dir: str, limits: TextLimits) -> EmbeddingInputs:
        """For an embedding model that this project exported, in a directory or at a URI.

        Raises:
            UserError: it is not one.
        """
        folder = Storage(model_dir).local()
        contract = read_contract(folder)
        if contract is None or contract.kind != "embedding":
            raise UserError(f"{model_dir}: not an embedding model of ours")
        template = EmbeddingTemplate(load_tokenizer(folder), contract.end_token)
        return EmbeddingInputs(template, contract.instruction, limits, contract.dimensions)

    def prepare(self, request: EmbeddingRequest) -> Prepared:
        """Token ids of a request's inputs.

        Raises:
            ApiError: 400 for an input or a request that is too long, a token id that does not exist, or more
                dimensions than there are.
        """
        if request.dimensions is not None and request.dimensions > self.dimensions:
            message = f"dimensions {request.dimensions}: the model has 1 to {self.dimensions}"
            raise bad_request(message, "dimensions")
        instruction = (request.instruction or self.instruction) if request.is_query else None
        limit = self.limits.query if request.is_query else self.limits.document
        prompt = self.template.prompt(instruction)
        if limit - len(prompt) < 2:
            raise bad_request(f"instruction has {len(prompt)} tokens, at most {limit - 2} fit", "instruction")
        prefix, texts = self._ids(request.inputs(), instruction)
        room = limit - len(prefix) - 1
        long = [i for i, ids in enumerate(texts) if len(ids) > room]
        if long and not request.truncate:
            size = len(prefix) + len(texts[long[0]]) + 1
            kind = "query" if request.is_query else "document"
            raise bad_request(
                f"input[{long[0]}] has {size} tokens with its template, a {kind} may have {limit}; {_HINT}",
                "input",
                "context_length_exceeded",
            )
        end = self.template.end_id
        return _bounded(Prepared(prefix, [[*ids[:room], end] for ids in texts], long), "input")

    def _ids(self, inputs: list[str] | list[list[int]], instruction: str | None) -> tuple[list[int], list[list[int]]]:
        """(shared prefix, ids of each text after it), without the end token, which a client's ids may end with."""
        if isinstance(inputs[0], str):
            texts = [str(text) for text in inputs]
            prefix, leaves = self.template.encode(texts, _UNLIMITED, instruction)
            return prefix, [leaf[:-1] for leaf in leaves]
        vocabulary, end = len(self.template.tokenizer), self.template.end_id
        token_ids = [[int(token) for token in ids] for ids in inputs]
        for number, ids in enumerate(token_ids):
            wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
            if wrong is not None:
                raise bad_request(f"input[{number}]: no token {wrong}; there are {vocabulary}", "input")
        return self.template.prompt(instruction), [ids[:-1] if ids[-1] == end else ids for ids in token_ids]


@dataclass(frozen=True)
class RerankInputs:
    """Prepares the inputs of rerank requests.

    Attributes:
        template: of the reranker.
        instruction: for requests without one; None = the template's default.
        limits: longest query and document, in tokens.
        context: longest input of the model, in tokens.
    """

    template: RerankTemplate
    instruction: str | None
    limits: TextLimits
    context: int

    @staticmethod
    def of_model(model_dir: str, limits: TextLimits) -> RerankInputs:
        """For a reranker in a directory or at a URI."""
        folder = Storage(model_dir).local()
        contract = read_contract(folder)
        instruction = contract.instruction if contract else None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        template = RerankTemplate(load_tokenizer(folder))
        return RerankInputs(template, instruction, limits, int(config["max_position_embeddings"]))

    def prepare(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        truncate: bool = False,
        max_tokens_per_doc: int | None = None,
    ) -> Prepared:
        """Token ids of a query and its documents.

        Documents longer than `max_tokens_per_doc` are cut even without `truncate`, since the client set that length.

        Raises:
            ApiError: 400 for a query, a document or a request that is too long.
        """
        size = self._size(query)
        if size > self.limits.query and not truncate:
            raise bad_request(
                f"query has {size} tokens, at most {self.limits.query} fit; {_HINT}",
                "query",
                "context_length_exceeded",
            )
        chosen = instruction or self.instruction or DEFAULT_RERANK_INSTRUCTION
        prefix = self.template.prefix(query, chosen, self.limits.query)
        suffix = len(self.template.leaves([""], _UNLIMITED)[0]) - self._size(" ")
        fits = min(self.limits.document, self.context - len(prefix) - suffix)
        if fits < 1:
            raise bad_request(
                f"query and instruction have {len(prefix)} tokens, which leaves no room for a document",
                "query",
            )
        cut_by_client = max_tokens_per_doc is not None and max_tokens_per_doc <= fits
        room = min(fits, max_tokens_per_doc or fits)
        whole = self.template.leaves(documents, _UNLIMITED)
        long = [i for i, leaf in enumerate(whole) if len(leaf) - suffix > room]
        if long and not cut_by_client and not truncate:
            raise bad_request(
                f"documents[{long[0]}]: {len(whole[long[0]]) - suffix} tokens, at most {fits} fit; {_HINT}",
                "documents",
                "context_length_exceeded",
            )
        leaves = self.template.leaves(documents, room + suffix) if long else whole
        return _bounded(Prepared(prefix, leaves, long), "documents")

    def _size(self, text: str) -> int:
        return len(self.template.text_tokenizer.ids([text])[0])


def _bounded(prepared: Prepared, param: str) -> Prepared:
    if prepared.tokens > MAX_TOKENS:
        raise bad_request(
            f"the request has {prepared.tokens} tokens, at most {MAX_TOKENS} fit; split it into several",
            param,
        )
    return prepared
