"""The formats, to the letter, and what truncation may cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qwen3emb.core.errors import UserError
from qwen3emb.text.templates import (
    EmbeddingTemplate,
    RerankTemplate,
    TextLimits,
    query_prompt,
    score_template,
    token_id,
)

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


def test_a_query_has_its_limit_with_its_prompt_and_a_document_its_own(tokenizer: Any) -> None:
    template, limits, long = EmbeddingTemplate(tokenizer, "<|endoftext|>"), TextLimits(40, 25), "some more words " * 99
    text = tokenizer.encode(long, add_special_tokens=False)
    prompt = tokenizer.encode("Instruct: find it\nQuery:", add_special_tokens=False)
    prefix, [query] = template.queries([long], limits, "find it")
    whole = tokenizer.encode(f"Instruct: find it\nQuery:{long}", add_special_tokens=False)
    assert [*prefix, *query] == [*whole[:39], template.end_id] and len(prompt) < 39
    assert template.documents([long, "short"], limits)[0] == [*text[:24], template.end_id]
    assert template.queries([long], limits, "") == ([], [[*text[:39], template.end_id]])


@pytest.fixture(scope="module")
def crossing() -> Any:
    """A tokenizer whose words take the mark before them with them, as Qwen3's `:string`, `:int`, `."`, `:\n` do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), byte_level])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    texts = [
        "Instruct: find it\nQuery:string Query:int Query:\n",
        'a:string b:int :: scope :"quoted" x:/path y:-1',
    ] * 99
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


QUERIES = [
    "string to int",
    "int",
    "what is love",
    '"quoted"',
    "/path",
    "-1",
    ":: scope",
    "\nnew line",
    "",
    " spaced",
    "文",
]


@pytest.mark.parametrize("queries", [QUERIES, *([q] for q in QUERIES)])
def test_a_token_across_the_border_of_prompt_and_text_is_one(crossing: Any, queries: list[str]) -> None:
    template, prompt = EmbeddingTemplate(crossing, "<|endoftext|>"), query_prompt("find it")
    prefix, leaves = template.encode(queries, 64, "find it")
    assert [[*prefix, *leaf] for leaf in leaves] == [crossing.encode(f"{prompt}{q}<|endoftext|>") for q in queries]
    assert len(prefix) > 3, "the prompt is shared"
    apart = [crossing.encode(prompt) + crossing.encode(q) for q in queries]
    whole = [crossing.encode(prompt + q) for q in queries]
    assert queries != QUERIES or apart != whole, "this vocabulary has such tokens"


def test_truncation_cuts_the_text_and_keeps_the_end_token(tokenizer: Any) -> None:
    template = EmbeddingTemplate(tokenizer, "<|endoftext|>")
    prefix, [leaf] = template.encode(["word " * 200], 40, "find it")
    assert len(prefix) + len(leaf) == 40
    assert leaf[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with pytest.raises(UserError, match="no room"):
        template.encode(["x"], len(template.prompt("find it")) + 1, "find it")


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


def test_a_query_that_is_cut_within_a_character_loses_it(tokenizer: Any) -> None:
    template = RerankTemplate(tokenizer)
    for most in range(1, 12):
        text = tokenizer.decode(template.prefix("如何打开文件", "find it", max_query_tokens=most))
        asked = text.partition("<Query>: ")[2].partition("\n")[0]
        assert "如何打开文件".startswith(asked), "no half of a character"
