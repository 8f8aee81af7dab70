"""The formats, to the letter, and what truncation may cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qwen3emb.errors import UserError
from qwen3emb.templates import EmbeddingTemplate, RerankTemplate, query_prompt, score_template, token_id

EXPECTED_RERANK = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: find it\n'
    "<Query>: how?\n<Document>: so<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@pytest.fixture
def tokenizer(tiny_qwen3: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_qwen3)


def test_the_query_has_no_space_after_the_colon() -> None:
    assert query_prompt("find it") + "how?" == "Instruct: find it\nQuery:how?"


def test_embedding_ids_are_those_of_the_whole_string(tokenizer: Any) -> None:
    template = EmbeddingTemplate(tokenizer, "<|endoftext|>")
    prefix, [leaf] = template.encode(["how do I read a file?"], 64, "find it")
    whole = tokenizer.encode("Instruct: find it\nQuery:how do I read a file?<|endoftext|>")
    assert [*prefix, *leaf] == whole
    assert template.encode(["a file"], 64)[0] == []


def test_truncation_cuts_the_text_and_keeps_the_end_token(tokenizer: Any) -> None:
    template = EmbeddingTemplate(tokenizer, "<|endoftext|>")
    prefix, [leaf] = template.encode(["word " * 200], 40, "find it")
    assert len(prefix) + len(leaf) == 40
    assert leaf[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with pytest.raises(UserError, match="no room"):
        template.encode(["x"], len(prefix), "find it")


def test_rerank_text_and_ids_are_the_released_format(tokenizer: Any) -> None:
    assert RerankTemplate.text("how?", "so", "find it") == EXPECTED_RERANK
    template = RerankTemplate(tokenizer)
    [leaf] = template.leaves(["so"], 100)
    assert [*template.prefix("how?", "find it"), *leaf] == tokenizer.encode(EXPECTED_RERANK)


def test_rerank_truncation_never_touches_the_suffix(tokenizer: Any) -> None:
    template = RerankTemplate(tokenizer)
    [short] = template.leaves([""], 100)
    [long] = template.leaves(["so " * 300], 60)
    tail = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert len(long) == 60
    assert long[-len(tail) :] == tail == short[-len(tail) :]
    with pytest.raises(UserError, match="suffix"):
        template.leaves(["x"], len(tail))


def test_yes_and_no_must_be_one_token_each(tokenizer: Any) -> None:
    assert RerankTemplate(tokenizer).yes_no == (token_id(tokenizer, "yes"), token_id(tokenizer, "no"))
    with pytest.raises(UserError, match="splits"):
        token_id(tokenizer, "yes and no and maybe")


@pytest.mark.parametrize("own", ["find it", 'a "quoted"\n{% raw %} \\ {query} task'])
def test_the_score_template_renders_the_rerankers_input(tokenizer: Any, own: str) -> None:
    def rendered(*messages: tuple[str, str], **variables: str) -> str:
        tokenizer.chat_template = score_template(own)
        dialogue = [{"role": role, "content": content} for role, content in messages]
        return str(tokenizer.apply_chat_template(dialogue, tokenize=False, **variables))

    pair = ("query", " what {document}? "), ("document", "\n{{ a }} <text>\n")
    texts = pair[0][1], pair[1][1]
    assert rendered(*pair) == RerankTemplate.text(*texts, own)
    assert rendered(*pair, instruction="another") == RerankTemplate.text(*texts, "another")
    assert rendered(("system", "of the system"), *pair) == RerankTemplate.text(*texts, "of the system")
