"""One sentence of a passage, which a bitext or STS item is made of."""

from __future__ import annotations

import re

from qwen3emb.synthesis.gates import word_count
from qwen3emb.synthesis.tasks.item import Requirement, language_name

__all__ = ["drawn_sentence", "similar_requirement"]

_SENTENCE_WORDS = (4, 40)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？؟।])\s+|(?<=[。！？])|\n\s*\n")


def drawn_sentence(text: str, draw: float) -> str:
    """One sentence of a text of 4 to 40 words where there is one, else the text's first 40 words.

    Args:
        text: a passage.
        draw: in [0, 1), chooses the sentence.
    """
    sentences = [" ".join(part.split()) for part in _SENTENCE_END.split(text)]
    low, high = _SENTENCE_WORDS
    fitting = [s for s in sentences if low <= word_count(s) <= high]
    if fitting:
        return fitting[int(draw * len(fitting))]
    return " ".join(text.split()[:high])[: high * 10]


def similar_requirement(sentence: str, language: str) -> Requirement:
    """What is asked for of a text of `language` that is to be about as long as `sentence`."""
    words = word_count(sentence)
    return Requirement(f"{max(1, int(words / 2))}-{int(2 * words) + 2}", language, language_name(language))
