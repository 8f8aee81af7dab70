"""What the ingress makes of texts, and how jobs share forward passes."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qwen3emb.text.templates import EmbeddingTemplate, RerankTemplate, TextLimits, query_prompt
from serve.batching import Job, forward_passes, split
from serve.inputs import EmbeddingInputs, Prepared, RerankInputs
from serve.schema import ApiError, EmbeddingRequest

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per byte, but for the special tokens and yes / no."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    vocabulary = {t: i for i, t in enumerate([*alphabet, "ye", "yes", "no"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw)
    wrapped.add_special_tokens({"additional_special_tokens": [END, "<|im_start|>", "<|im_end|>"]})
    return wrapped


@pytest.fixture(scope="module")
def inputs(tokenizer: Any) -> EmbeddingInputs:
    return EmbeddingInputs(EmbeddingTemplate(tokenizer, END), "Find it", TextLimits(60, 30), 8)


@pytest.fixture(scope="module")
def judging(tokenizer: Any) -> RerankInputs:
    return RerankInputs(RerankTemplate(tokenizer), "Find it", TextLimits(20, 30), 4096)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _whole(prepared: Prepared) -> list[list[int]]:
    return [[*prepared.prefix, *leaf] for leaf in prepared.leaves]


def test_documents_are_the_bare_text_and_the_end_token(tokenizer: Any, inputs: EmbeddingInputs) -> None:
    prepared = inputs.prepare(EmbeddingRequest(input=["abc", "defg"]))
    assert _whole(prepared) == [_ids(tokenizer, "abc" + END), _ids(tokenizer, "defg" + END)]
    assert prepared.tokens == 4 + 5
    assert prepared.truncated == []


@pytest.mark.parametrize("instruction", [None, "Another task"])
def test_queries_have_the_instruction_before_them(
    tokenizer: Any, inputs: EmbeddingInputs, instruction: str | None
) -> None:
    prepared = inputs.prepare(EmbeddingRequest(input="abc", input_type="query", instruction=instruction))
    expected = _ids(tokenizer, query_prompt(instruction or "Find it") + "abc" + END)
    assert _whole(prepared) == [expected]
    assert prepared.tokens == len(expected)


def test_token_input_is_the_text_with_or_without_its_end(tokenizer: Any, inputs: EmbeddingInputs) -> None:
    wanted = _whole(inputs.prepare(EmbeddingRequest(input="abc")))
    for ids in (_ids(tokenizer, "abc"), _ids(tokenizer, "abc" + END)):
        assert _whole(inputs.prepare(EmbeddingRequest(input=ids))) == wanted
    with pytest.raises(ApiError, match=r"input\[1\]: no token 99999"):
        inputs.prepare(EmbeddingRequest(input=[[1], [99999]]))


def test_the_longest_input_passes_and_one_token_more_is_400(inputs: EmbeddingInputs) -> None:
    assert inputs.prepare(EmbeddingRequest(input="a" * 29)).tokens == 30
    with pytest.raises(ApiError, match=r"input\[1\] has 31 tokens .* a document may have 30") as caught:
        inputs.prepare(EmbeddingRequest(input=["a", "a" * 30]))
    assert caught.value.status == 400
    assert caught.value.body()["error"]["code"] == "context_length_exceeded"


def test_truncation_cuts_the_text_and_says_so(tokenizer: Any, inputs: EmbeddingInputs) -> None:
    prepared = inputs.prepare(EmbeddingRequest(input=["a", "b" * 99], truncate=True))
    assert _whole(prepared)[1] == _ids(tokenizer, "b" * 29 + END)
    assert prepared.truncated == [1]


def test_a_request_of_too_many_tokens_is_400(inputs: EmbeddingInputs) -> None:
    with pytest.raises(ApiError, match="at most 300000 fit"):
        EmbeddingInputs(inputs.template, "Find it", TextLimits(400_000, 400_000), 8).prepare(
            EmbeddingRequest(input=["a" * 200] * 1600)
        )


def test_instruction_that_leaves_no_room_is_400(inputs: EmbeddingInputs) -> None:
    with pytest.raises(ApiError, match="instruction has"):
        inputs.prepare(EmbeddingRequest(input="a", instruction="i" * 60))


def test_more_dimensions_than_there_are_is_400(inputs: EmbeddingInputs) -> None:
    inputs.prepare(EmbeddingRequest(input="a", dimensions=8))
    with pytest.raises(ApiError, match="dimensions 9: the model has 1 to 8"):
        inputs.prepare(EmbeddingRequest(input="a", dimensions=9))


def test_rerank_inputs_are_the_template(tokenizer: Any, judging: RerankInputs) -> None:
    prepared = judging.prepare("a query", ["one", "two words"])
    expected = [_ids(tokenizer, RerankTemplate.text("a query", d, "Find it")) for d in ("one", "two words")]
    assert _whole(prepared) == expected
    assert prepared.tokens == sum(map(len, expected))


def test_rerank_cuts_documents_but_never_the_suffix(tokenizer: Any, judging: RerankInputs) -> None:
    with pytest.raises(ApiError, match=r"documents\[1\]: 41 tokens, at most 30 fit"):
        judging.prepare("q", ["a", "b" * 40])
    cut = judging.prepare("q", ["a", "b" * 40], truncate=True)
    assert _whole(cut)[1] == _ids(tokenizer, RerankTemplate.text("q", "b" * 29, "Find it"))
    assert cut.truncated == [1]
    asked = judging.prepare("q", ["a", "b" * 40], max_tokens_per_doc=10)
    assert _whole(asked)[1] == _ids(tokenizer, RerankTemplate.text("q", "b" * 9, "Find it"))


def test_rerank_query_that_is_too_long(tokenizer: Any, judging: RerankInputs) -> None:
    with pytest.raises(ApiError, match="query has 21 tokens, at most 20 fit"):
        judging.prepare("q" * 21, ["a"])
    cut = judging.prepare("q" * 21, ["a"], truncate=True)
    assert _whole(cut) == [_ids(tokenizer, RerankTemplate.text("q" * 20, "a", "Find it"))]


def test_split_covers_every_input_once_within_the_budget() -> None:
    prepared = Prepared([1, 2], [[7] * n for n in (3, 50, 8, 8, 1, 20)], [])
    parts = list(split(prepared, 16, budget=25))
    assert sorted(i for numbers, _ in parts for i in numbers) == list(range(6))
    for numbers, job in parts:
        assert job.leaves == [prepared.leaves[i] for i in numbers]
        assert (job.prefix, job.dimensions) == ([1, 2], 16)
        assert sum(map(len, job.leaves)) <= 25 or len(numbers) == 1


def test_passes_cover_every_leaf_once_and_share_prefixes_across_jobs() -> None:
    jobs = [Job([1], [[5] * 3, [6] * 9]), Job([2, 3], [[7]]), Job([1], [[8] * 2]), Job([], [[9] * 4])]
    passes = list(forward_passes(jobs, budget=100))
    assert len(passes) == 1
    places, trees = passes[0]
    assert [list(prefix) for prefix, _ in trees] == [[], [1], [2, 3]]
    flat = [leaf for _, leaves in trees for leaf in leaves]
    assert flat == [jobs[i].leaves[j] for i, j in places]
    assert sorted(places) == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]


def test_passes_stay_within_the_budget_prefixes_counted() -> None:
    jobs = [Job([i] * 10, [[1] * 5, [1] * 8]) for i in range(6)]
    seen = []
    for places, trees in forward_passes(jobs, budget=40):
        tokens = sum(len(prefix) + sum(map(len, leaves)) for prefix, leaves in trees)
        assert tokens <= 40
        seen.extend(places)
    assert sorted(seen) == [(i, j) for i in range(6) for j in range(2)]
