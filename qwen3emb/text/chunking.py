"""Long texts into chunks of a token budget, cut between paragraphs, sentences or words where possible."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from qwen3emb.core.errors import UserError

__all__ = ["TokenOffsets", "chunk_text"]

TokenOffsets = Callable[[str], list[tuple[int, int]]]
"""The (start, end) characters of each token of a text, in order; special tokens may have empty spans."""

_SPACES = re.compile(r"\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?\u2026\u0964\u06d4\u061f][\"')\]\u2019\u201d\u00bb]*$")
_UNSPACED_SENTENCE_END = re.compile(r"[\u3002\uff01\uff1f\uff61][\"')\]\u2019\u201d\u300d\u300f\uff09]*")
_NOWHERE, _BLANK, _SENTENCE, _BREAK = range(4)  # how good a place to cut is


def chunk_text(text: str, count_tokens: TokenOffsets, max_tokens: int, overlap_tokens: int = 0) -> list[str]:
    """`text` in order as chunks of at most `max_tokens` tokens each, as `count_tokens` counts the chunk.

    A chunk ends at the last paragraph break that leaves it at least half full, else at the last such
    sentence end, else at the last whitespace, else between two tokens; never inside a token. With
    overlap, a chunk begins up to `overlap_tokens` tokens before the end of the one before, at whitespace
    where there is some. Chunks are stripped; nothing but whitespace is lost; blank text has no chunks.

    Raises UserError for a budget below 1 or not above the overlap, or one that a single token-bounded
    piece of the text exceeds (a rare character of several tokens, special tokens alone).
    """
    if max_tokens < 1 or not 0 <= overlap_tokens < max_tokens:
        raise UserError(
            f"chunks of {max_tokens} tokens with an overlap of {overlap_tokens} are not possible; "
            "the size must be at least 1 and the overlap at least 0 and smaller than the size."
        )
    if not text.strip():
        return []
    places = _places(text, count_tokens(text))
    chunks: list[str] = []
    start, covered = 0, 0  # indices of places; everything before `covered` is in a chunk
    while covered < len(places.characters) - 1:
        end = _fitting_end(text, places, start, covered, count_tokens, max_tokens)
        if end is None and start < covered:
            start = covered  # no room for the overlap and something new
            continue
        if end is None:
            piece = text[places.characters[start] : places.characters[start + 1]].strip()
            raise UserError(f"a chunk of {max_tokens} tokens cannot hold {piece!r}; give chunks more tokens.")
        added = text[places.characters[covered] : places.characters[end]]
        if added.strip():  # else a chunk of nothing but overlap
            chunks.append(text[places.characters[start] : places.characters[end]].strip())
        covered = end
        start = _overlap_start(places, start, end, overlap_tokens)
    return chunks


@dataclass(frozen=True)
class _Places:
    """Where a text may be cut: character offsets (ascending), the number of tokens before each, and its rank."""

    characters: list[int]
    tokens: list[int]
    ranks: list[int]


def _places(text: str, offsets: list[tuple[int, int]]) -> _Places:
    characters, tokens, reached = [0], [0], 0
    for index, (start, end) in enumerate(offsets):
        # A token that starts before another has ended (bytes of one character) cannot be cut from it.
        if start >= reached and start > characters[-1]:
            characters.append(start)
            tokens.append(index)
        reached = max(reached, end)
    characters.append(len(text))
    tokens.append(len(offsets))
    return _Places(characters, tokens, _ranks(text, characters))


def _ranks(text: str, characters: list[int]) -> list[int]:
    """How good a place to cut each offset is: within a word, at a blank, after a sentence, between paragraphs."""
    ranks = [_NOWHERE] * len(characters)
    for match in _UNSPACED_SENTENCE_END.finditer(text):
        place = bisect_left(characters, match.end())
        if place < len(characters) and characters[place] == match.end():
            ranks[place] = _SENTENCE
    for match in _SPACES.finditer(text):
        rank = _BLANK
        if _PARAGRAPH.search(match.group()):
            rank = _BREAK
        elif _SENTENCE_END.search(text, max(0, match.start() - 8), match.start()):
            rank = _SENTENCE
        for place in range(bisect_left(characters, match.start()), bisect_right(characters, match.end())):
            ranks[place] = max(rank, ranks[place])
    return ranks


def _fitting_end(
    text: str, places: _Places, start: int, covered: int, count_tokens: TokenOffsets, max_tokens: int
) -> int | None:
    """The place where the chunk that begins at `start` ends, after `covered`; None where none fits.

    A chunk may have more tokens by itself than within the text, so the tokens of each are counted again.
    """
    budget = max_tokens
    while True:
        last = bisect_right(places.tokens, places.tokens[start] + budget) - 1
        if last <= covered:
            return None
        end = _best_end(places, start, covered, last, max_tokens)
        chunk = text[places.characters[start] : places.characters[end]].strip()
        over = len(count_tokens(chunk)) - max_tokens if chunk else 0
        if over <= 0:
            return end
        budget = min(budget - 1, places.tokens[end] - places.tokens[start] - over)


def _best_end(places: _Places, start: int, covered: int, last: int, max_tokens: int) -> int:
    """The place to end a chunk at, after `covered` and up to `last`, by the rule of `chunk_text`."""
    if last == len(places.characters) - 1:
        return last
    half = bisect_left(places.tokens, places.tokens[start] + (max_tokens + 1) // 2)
    for rank, first in ((_BREAK, half), (_SENTENCE, half), (_BLANK, 0)):
        for place in range(last, max(first, covered + 1) - 1, -1):
            if places.ranks[place] >= rank:
                return place
    return last


def _overlap_start(places: _Places, start: int, end: int, overlap_tokens: int) -> int:
    """The place where the next chunk begins: after `start`, and at most the overlap before `end`."""
    first = max(bisect_left(places.tokens, places.tokens[end] - overlap_tokens), start + 1)
    for place in range(first, end):
        if places.ranks[place] >= _BLANK:
            return place
    return min(first, end)
