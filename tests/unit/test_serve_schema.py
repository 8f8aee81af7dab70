from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from serve.schema import (
    EmbeddingRequest,
    RerankRequest,
    SearchRequest,
    embedding_response,
    model_list,
    overloaded,
    rerank_response,
    unknown_model,
    validation_error,
)


def _complaint(model: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The error body a client gets for a request body."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    error = validation_error(caught.value.errors())
    assert error.status == 400
    fields = error.body()["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    assert fields["type"] == "invalid_request_error"
    return dict(fields)


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_the_four_shapes_of_input(given: Any, listed: Any) -> None:
    assert EmbeddingRequest.model_validate({"input": given}).inputs() == listed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "input[0] is empty"),
        (["a", ""], "input[1] is empty"),
        ([[1], []], "input[1] is empty"),
        ([], "empty list"),
        (None, "must be a string"),
        (3, "must be a string"),
        (["a", 1], "must be a string"),
        ([True, False], "must be a string"),
        ([1.5], "must be a string"),
        ([["a"]], "must be a string"),
        (["a"] * 2049, "at most 2048"),
    ],
)
def test_other_inputs_are_refused(given: Any, message: str) -> None:
    error = _complaint(EmbeddingRequest, {"input": given})
    assert message in error["message"]
    assert error["param"] == "input"


def test_2048_inputs_and_long_token_lists_pass() -> None:
    assert len(EmbeddingRequest.model_validate({"input": ["a"] * 2048}).inputs()) == 2048
    assert len(EmbeddingRequest.model_validate({"input": [1] * 5000}).inputs()) == 1


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"dimension": 64}, "dimension"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "many"}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"output_dtype": "int4"}, "output_dtype"),
        ({"input_type": "passage"}, "input_type"),
        ({"instruction": ""}, "instruction"),
    ],
)
def test_wrong_fields_are_named(extra: dict[str, Any], param: str) -> None:
    error = _complaint(EmbeddingRequest, {"input": "a"} | extra)
    assert error["param"] == param
    assert param in error["message"]


def test_missing_input_is_named() -> None:
    assert _complaint(EmbeddingRequest, {})["param"] == "input"


def test_an_instruction_makes_queries_and_never_documents() -> None:
    assert not EmbeddingRequest(input="a").is_query
    assert EmbeddingRequest(input="a", input_type="query").is_query
    assert EmbeddingRequest(input="a", instruction="Find it").is_query
    error = _complaint(EmbeddingRequest, {"input": "a", "instruction": "Find it", "input_type": "document"})
    assert "documents take none" in error["message"]


def test_the_response_is_openais() -> None:
    body = embedding_response("m", [[0.5, 1.0], [0.0, 2.0]], 7, [])
    assert body["data"][1] == {"object": "embedding", "index": 1, "embedding": [0.0, 2.0]}
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert "truncated" not in body
    assert embedding_response("m", ["AAAA"], 7, [0])["truncated"] == [0]


def test_rerank_results_are_sorted_cut_and_stable() -> None:
    request = RerankRequest(query="q", documents=["a", "b", "c", "d"], top_n=3)
    scores = np.array([0.2, 0.9, 0.2, 0.1], dtype=np.float32)
    body = rerank_response("m", request, scores, 11, [], "x")
    assert [r["index"] for r in body["results"]] == [1, 0, 2]
    assert body["results"][0] == {"index": 1, "relevance_score": pytest.approx(0.9)}
    assert body["meta"]["tokens"] == {"input_tokens": 11, "output_tokens": 0}
    assert body["usage"]["total_tokens"] == 11


def test_rerank_documents_may_be_objects_and_come_back_on_request() -> None:
    documents: list[Any] = ["a", {"text": "b", "id": 7}]
    request = RerankRequest.model_validate({"query": "q", "documents": documents, "return_documents": True})
    assert request.texts() == ["a", "b"]
    body = rerank_response("m", request, np.array([0.1, 0.2]), 1, [], "x")
    assert body["results"][0]["document"] == {"text": "b"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": [{"body": "a"}]}, "documents"),
        ({"query": "q", "docs": ["a"]}, "documents"),
    ],
)
def test_wrong_rerank_requests_are_refused(body: dict[str, Any], param: str) -> None:
    assert _complaint(RerankRequest, body)["param"] == param


def test_wrong_search_requests_are_refused() -> None:
    assert _complaint(SearchRequest, {"query": "q", "top_k": 0})["param"] == "top_k"
    assert _complaint(SearchRequest, {"query": "q", "top": 3})["param"] == "top"


def test_errors_have_their_status_code_and_header() -> None:
    busy = overloaded(3)
    assert (busy.status, busy.headers) == (429, {"Retry-After": "3"})
    missing = unknown_model("x", ["demo-embedding"])
    assert missing.status == 404
    assert missing.body()["error"]["code"] == "model_not_found"
    assert "demo-embedding" in missing.body()["error"]["message"]


def test_model_list_is_openais() -> None:
    entry = {"id": "a", "object": "model", "created": 5, "owned_by": "qwen3emb"}
    assert model_list(["a"], 5) == {"object": "list", "data": [entry]}


@pytest.mark.parametrize(
    ("model", "body", "place"),
    [
        (EmbeddingRequest, {"input": "a \ud83d b"}, "input"),
        (EmbeddingRequest, {"input": ["a", "b \ud83d"]}, "input[1]"),
        (EmbeddingRequest, {"input": "a", "instruction": "\udc00"}, "instruction"),
        (EmbeddingRequest, {"input": "a", "model": "\udc00"}, "model"),
        (EmbeddingRequest, {"input": "a", "user": "\udc00"}, "user"),
        (RerankRequest, {"query": "k \ud83d", "documents": ["x"]}, "query"),
        (RerankRequest, {"query": "k", "documents": ["x", "y \ud83d"]}, "documents[1]"),
        (RerankRequest, {"query": "k", "documents": ["x", {"text": "\udfff y"}]}, "documents[1].text"),
        (RerankRequest, {"query": "k", "documents": ["x"], "instruction": "\udc00"}, "instruction"),
        (SearchRequest, {"query": "\ude00\ud83d"}, "query"),
        (SearchRequest, {"query": "k", "instruction": "\ud83d"}, "instruction"),
    ],
)
def test_half_a_surrogate_pair_is_named_wherever_a_text_stands(model: Any, body: dict[str, Any], place: str) -> None:
    error = _complaint(model, json.loads(json.dumps(body)))  # as JSON writes it: "\ud83d"
    assert error["param"] == place.partition("[")[0]
    assert f" {place} holds half of a surrogate pair" in error["message"]
    json.dumps(error, ensure_ascii=False).encode("utf-8")


def test_whole_pairs_and_control_characters_are_texts() -> None:
    text = json.loads('"\\ud83c\\udf75 \\u0000 \\u0007"')
    assert EmbeddingRequest(input=[text]).inputs() == [text]
    assert RerankRequest.model_validate({"query": text, "documents": [{"text": text}]}).texts() == [text]


def test_a_field_whose_name_is_no_text_can_be_named_in_an_answer() -> None:
    error = _complaint(SearchRequest, {"query": "k", "a\ud83d": 1})
    assert error["message"] == r"there is no field 'a\ud83d'"
    json.dumps(error, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("document", [None, 3, ["a"], {"text": None}, {}])
def test_documents_that_are_no_texts_are_named(document: Any) -> None:
    error = _complaint(RerankRequest, {"query": "q", "documents": ["a", document]})
    assert error["param"] == "documents" and "documents[1] must be a text" in error["message"]


@pytest.mark.parametrize(
    ("model", "body", "field"),
    [
        (EmbeddingRequest, {"input": "a"}, "dimensions"),
        (RerankRequest, {"query": "q", "documents": ["a"]}, "top_n"),
        (RerankRequest, {"query": "q", "documents": ["a"]}, "max_tokens_per_doc"),
        (SearchRequest, {"query": "q"}, "top_k"),
        (SearchRequest, {"query": "q"}, "rerank_top"),
    ],
)
@pytest.mark.parametrize("value", [True, "3", 2.0])
def test_numbers_are_numbers(model: Any, body: dict[str, Any], field: str, value: Any) -> None:
    """True is 1 to Python: a vector of one dimension would come back, and nobody would see why."""
    assert _complaint(model, body | {field: value})["param"] == field
    model.model_validate(body | {field: 25})
