from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.core.errors import UserError
from qwen3emb.text.chunking import TokenOffsets, chunk_text

Offsets = list[tuple[int, int]]


def words(text: str) -> Offsets:
    return [found.span() for found in re.finditer(r"\S+", text)]


def bpe_like(text: str) -> Offsets:
    """As a byte-level BPE: a space belongs to the word after it, long words are several tokens."""
    return [found.span() for found in re.finditer(r" ?\w{1,4}|\n+|\s|[^\w\s]", text)]


def by_bytes(text: str) -> Offsets:
    """Each UTF-8 byte is a token: those of one character share its offsets."""
    return [(i, i + 1) for i, char in enumerate(text) for _ in char.encode("utf-8", "surrogatepass")]


def with_special_tokens(text: str) -> Offsets:
    return [(0, 0), *bpe_like(text), (0, 0)]


COUNTERS = [words, bpe_like, by_bytes, with_special_tokens]

prose = st.lists(
    st.sampled_from(["word", "a", "longer-word", "x" * 30, "é", "。", "中文。", ".", "! ", "\n\n", "\n", " ", "😀"]),
    max_size=120,
).flatmap(lambda parts: st.sampled_from(["".join(parts), " ".join(parts)]))


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@settings(max_examples=150, deadline=None)
@given(st.one_of(prose, st.text(max_size=200)), st.sampled_from(COUNTERS), st.integers(6, 40))
def test_chunks_fit_and_together_are_the_text(text: str, counter: TokenOffsets, size: int) -> None:
    chunks = chunk_text(text, counter, size)
    assert all(0 < len(counter(chunk)) <= size for chunk in chunks)
    assert bare("".join(chunks)) == bare(text)
    assert all(chunk == chunk.strip() for chunk in chunks)


# Every character but whitespace occurs once, so that where a chunk lies in the text is certain.
distinct = st.lists(st.sampled_from(["", "", "", " ", "\n", "\n\n"]), max_size=150).map(
    lambda gaps: "".join(chr(0x100 + i) + gap for i, gap in enumerate(gaps))
)


@settings(max_examples=150, deadline=None)
@given(distinct, st.sampled_from(COUNTERS), st.integers(6, 40), st.data())
def test_overlapping_chunks_fit_cover_the_text_and_advance(
    text: str, counter: TokenOffsets, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    chunks = chunk_text(text, counter, size, overlap)
    assert all(len(counter(chunk)) <= size for chunk in chunks)
    reached = 0
    for chunk in chunks:
        begin = text.index(chunk)
        assert not text[reached:begin].strip() and begin + len(chunk) > reached
        assert len(counter(text[begin:reached])) <= overlap or counter is with_special_tokens
        reached = begin + len(chunk)
    assert not text[reached:].strip()


@settings(max_examples=200, deadline=None)
@given(prose, st.integers(6, 30))
def test_tokens_are_never_split(text: str, size: int) -> None:
    spans = bpe_like(text)
    position = 0
    for chunk in chunk_text(text, bpe_like, size):
        position = text.index(chunk, position)
        assert not any(start < position < end and text[start:position].strip() for start, end in spans)
        position += len(chunk)
        assert not any(start < position < end and text[position:end].strip() for start, end in spans)


def test_paragraphs_are_preferred_then_sentences_then_words() -> None:
    text = "One two three. Four five.\n\nSix seven. Eight nine ten eleven twelve thirteen fourteen."
    assert chunk_text(text, words, 8) == [
        "One two three. Four five.",
        "Six seven. Eight nine ten eleven twelve thirteen",
        "fourteen.",
    ]
    assert chunk_text("Aa bb cc. Dd ee ff gg", words, 5) == ["Aa bb cc.", "Dd ee ff gg"]
    assert chunk_text("He said “no.” Then he left", words, 4) == ["He said “no.”", "Then he left"]
    assert chunk_text("天気がいい。散歩する。帰る", by_bytes, 38) == ["天気がいい。散歩する。", "帰る"]
    assert chunk_text("abcdefgh ij", bpe_like, 2) == ["abcdefgh", "ij"]


def test_a_break_near_the_start_does_not_make_a_tiny_chunk() -> None:
    text = "One\n\n" + " ".join(f"w{i}" for i in range(12))
    assert chunk_text(text, words, 10)[0].endswith("w8")


def test_overlap_repeats_whole_words() -> None:
    text = " ".join(f"w{i}" for i in range(10))
    assert chunk_text(text, words, 4, 1) == ["w0 w1 w2 w3", "w3 w4 w5 w6", "w6 w7 w8 w9"]


def test_short_and_blank_texts() -> None:
    assert chunk_text(" hello world\n", words, 2) == ["hello world"]
    assert chunk_text("", words, 5) == chunk_text(" \n", words, 5) == []


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_impossible_sizes_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(UserError):
        chunk_text("some text", words, size, overlap)


def test_a_budget_below_one_character_is_refused() -> None:
    with pytest.raises(UserError, match="😀"):
        chunk_text("a 😀 b", by_bytes, 3)


def test_time_is_linear_in_the_text() -> None:
    text = "Some words in a sentence. " * 40_000  # a megabyte
    assert len(chunk_text(text, words, 512, 64)) > 400
