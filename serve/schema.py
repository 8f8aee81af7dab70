"""Requests, responses and errors of the HTTP API. Imports no ray.

`/v1/embeddings` is OpenAI's with four fields more (`instruction`, `input_type`, `truncate`, and Voyage's
`output_dtype`); `/v1/rerank` is Cohere's v2 and Jina's with two (`instruction`, `truncate`); `/search` is our own. A
field that does not exist is an error, and so is every input that would otherwise be answered with a wrong number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from qwen3emb.metrics.order import best_first

__all__ = [
    "MAX_INPUTS",
    "MAX_TOKENS",
    "ApiError",
    "EmbeddingRequest",
    "RerankRequest",
    "SearchRequest",
    "bad_request",
    "embedding_response",
    "model_list",
    "overloaded",
    "rerank_response",
    "unknown_model",
    "validation_error",
]

MAX_INPUTS = 2048
MAX_TOKENS = 300_000
"""OpenAI's limits of one request."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_INPUT = "input must be a string, a list of strings, a list of token ids, or a list of lists of token ids"


class ApiError(Exception):
    """An error response in OpenAI's format.

    Attributes:
        status: HTTP status.
        headers: HTTP headers besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """An error response.

        Args:
            status: HTTP status.
            message: one sentence for the client.
            kind: the error's `type`.
            param: field of the request that it is about.
            code: for programs.
            headers: HTTP headers besides the usual ones.
        """
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self._fields = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": dict(self._fields)}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is invalid."""
    return ApiError(400, message, param=param, code=code)


def unknown_model(model: str, known: Sequence[str]) -> ApiError:
    """404 for a model that is not served at this endpoint."""
    served = f"served here: {', '.join(known)}" if known else "this server has none of that kind"
    return ApiError(404, f"no model {model!r}; {served}", param="model", code="model_not_found")


def overloaded(retry_after_s: int) -> ApiError:
    """429 with Retry-After."""
    message = f"too many requests are waiting; try again in {retry_after_s} s"
    headers = {"Retry-After": str(retry_after_s)}
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def validation_error(errors: Sequence[Any]) -> ApiError:
    """400 with the first validation error that pydantic reports for a body."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return bad_request(f"the body is not JSON: {message}")
    if not place and first["type"] == "string_unicode":
        return bad_request(f"there is no field {first['input']!r}")
    if not place and first["type"] != "value_error":
        return bad_request("the body is not a JSON object; send one with Content-Type: application/json")
    named = ".".join(place)
    return bad_request(f"{named}: {message}" if named else message, param=place[0] if place else None)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _characters(cls, value: Any, info: ValidationInfo) -> Any:
        """Every text of every request; pydantic looks at plain fields only, not at those of several types."""
        place = _half_pair(value)
        if place is not None:
            raise ValueError(f"{info.field_name}{place} holds half of a surrogate pair, which is no character")
        return value


def _half_pair(value: Any) -> str | None:
    """Where a value has a lone surrogate, which tokenizers refuse ("" in a string); None where it has none."""
    if isinstance(value, str):
        return "" if _SURROGATE.search(value) else None
    if isinstance(value, dict):  # other fields of a document are ignored
        position = _half_pair(value.get("text"))
        return None if position is None else f".text{position}"
    if not isinstance(value, list) or (value and isinstance(value[0], int)):  # token ids may be 300,000
        return None
    for number, item in enumerate(value):
        if isinstance(item, str | list | dict) and (position := _half_pair(item)) is not None:
            return f"[{number}]{position}"
    return None


class EmbeddingRequest(_Request):
    """`POST /v1/embeddings`."""

    input: str | list[str] | list[int] | list[list[int]]
    """A text, texts, token ids of a text, or of several; token ids of the text alone, no instruction."""
    model: str | None = None
    """Name from `/v1/models`; may be left out."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or their bytes in base64, float32 little-endian."""
    output_dtype: Literal["float", "int8", "binary", "ubinary"] = "float"
    """`int8` by the calibration of the index (`/v1/calibration`), or one bit for each value, eight to a byte."""
    dimensions: int | None = Field(default=None, ge=1, strict=True)
    """Keep this many leading dimensions, normalised again."""
    user: str | None = None
    """Ignored."""
    input_type: Literal["query", "document"] | None = None
    """Queries get the instruction before them; default document, or query where an instruction is given."""
    instruction: str | None = Field(default=None, min_length=1)
    """The task, in one sentence; default the model's own."""
    truncate: bool = False
    """Cut inputs that are too long, and say which in `truncated`, instead of refusing them."""

    @field_validator("input", mode="before")
    @classmethod
    def _shape(cls, value: Any) -> Any:
        return _checked_input(value)

    @model_validator(mode="after")
    def _consistent(self) -> EmbeddingRequest:
        if self.instruction and self.input_type == "document":
            raise ValueError("instruction: documents take none; leave it out or set input_type to query")
        return self

    @property
    def is_query(self) -> bool:
        """True where the instruction stands before the inputs."""
        return self.input_type == "query" or (self.input_type is None and self.instruction is not None)

    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


def _checked_input(value: Any) -> Any:
    """Return `value` if it has one of the four forms of `input` and nothing in it is empty.

    Raises:
        ValueError: it has not.
    """
    if isinstance(value, str):
        _not_empty([value])
        return value
    if not isinstance(value, list):
        raise ValueError(_INPUT)
    if not value:
        raise ValueError("input is an empty list")
    if all(_is_token(v) for v in value):
        return value
    if len(value) > MAX_INPUTS:
        raise ValueError(f"input has {len(value)} entries, at most {MAX_INPUTS} fit in one request")
    texts = all(isinstance(v, str) for v in value)
    tokens = all(isinstance(v, list) and all(_is_token(t) for t in v) for v in value)
    if not texts and not tokens:
        raise ValueError(_INPUT)
    _not_empty(value)
    return value


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _not_empty(values: list[Any]) -> None:
    for number, value in enumerate(values):
        if not value:
            raise ValueError(f"input[{number}] is empty")


class DocumentObject(BaseModel):
    """A document as an object; other fields than `text` are ignored."""

    text: str


class RerankRequest(_Request):
    """`POST /v1/rerank`."""

    query: str = Field(min_length=1)
    """The query."""
    documents: list[str | DocumentObject] = Field(min_length=1, max_length=MAX_INPUTS)
    """Texts, or objects with a `text`."""
    model: str | None = None
    """Name from `/v1/models`; may be left out."""
    top_n: int | None = Field(default=None, ge=1, strict=True)
    """Return this many of the best; default all."""
    return_documents: bool = False
    """Repeat the documents in the results."""
    max_tokens_per_doc: int | None = Field(default=None, ge=1, strict=True)
    """Cut documents to this many tokens."""
    instruction: str | None = Field(default=None, min_length=1)
    """The task, in one sentence; default the model's own."""
    truncate: bool = False
    """Cut inputs that are too long, and say which in `truncated`, instead of refusing them."""

    @field_validator("documents", mode="before")
    @classmethod
    def _shape(cls, value: Any) -> Any:
        for number, document in enumerate(value if isinstance(value, list) else ()):
            text = document.get("text") if isinstance(document, dict) else document
            if not isinstance(text, str | DocumentObject):
                raise ValueError(f"documents[{number}] must be a text, or an object with a text")
        return value

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [d if isinstance(d, str) else d.text for d in self.documents]


class SearchRequest(_Request):
    """`POST /search`."""

    query: str = Field(min_length=1)
    """The query."""
    top_k: int = Field(default=10, ge=1, le=1000, strict=True)
    """How many documents to return."""
    rerank: bool = False
    """Judge the best `rerank_top` with the reranker, and order them by its score."""
    rerank_top: int = Field(default=20, ge=1, le=1000, strict=True)
    """How many documents the reranker judges; at least `top_k`."""
    instruction: str | None = Field(default=None, min_length=1)
    """The task, in one sentence; default the models' own."""
    truncate: bool = False
    """Cut a query that is too long instead of refusing it."""


def embedding_response(
    model: str, vectors: Sequence[str | list[float] | list[int]], tokens: int, truncated: Sequence[int]
) -> dict[str, Any]:
    """The response body for `vectors` (`outputs.encoded`), with the indices of `truncated` inputs if any."""
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    body = {"object": "list", "data": data, "model": model, "usage": _usage(tokens)}
    return body | ({"truncated": list(truncated)} if truncated else {})


def rerank_response(
    model: str, request: RerankRequest, scores: np.ndarray, tokens: int, truncated: Sequence[int], number: str
) -> dict[str, Any]:
    """The response body for `scores` (documents,): best first, equal ones in the order of the request."""
    texts = request.texts()
    order = best_first(scores, request.top_n)
    results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
    if request.return_documents:
        results = [r | {"document": {"text": texts[r["index"]]}} for r in results]
    meta = {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": tokens, "output_tokens": 0},
    }
    body = {"id": number, "model": model, "results": results, "meta": meta, "usage": _usage(tokens)}
    return body | ({"truncated": list(truncated)} if truncated else {})


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """The body of `/v1/models`."""
    entries = [{"id": n, "object": "model", "created": created, "owned_by": "qwen3emb"} for n in names]
    return {"object": "list", "data": entries}
