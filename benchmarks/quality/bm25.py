"""BM25 (Robertson and Zaragoza 2009), for candidates and hard negatives: k1 1.2, b 0.75, words in lower case."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["Bm25"]

_WORD = re.compile(r"\w+")
_K1, _B = 1.2, 0.75


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


class Bm25:
    """An index of documents."""

    def __init__(self, documents: Sequence[str]) -> None:
        """Count the words of the documents."""
        counts = [Counter(words(document)) for document in documents]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        self.size = len(documents)
        norms = _K1 * (1 - _B + _B * lengths / max(1.0, lengths.mean())) if self.size else lengths
        rows: dict[str, list[int]] = {}
        for row, count in enumerate(counts):
            for word in count:
                rows.setdefault(word, []).append(row)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, found in rows.items():
            place = np.array(found)
            frequency = np.array([counts[row][word] for row in found], dtype=np.float64)
            rarity = math.log(1 + (self.size - len(found) + 0.5) / (len(found) + 0.5))
            self._postings[word] = place, rarity * frequency * (_K1 + 1) / (frequency + norms[place])

    def scores(self, query: str) -> np.ndarray:
        """(documents,) float64."""
        found = np.zeros(self.size)
        for word in words(query):
            if word in self._postings:
                rows, weights = self._postings[word]
                found[rows] += weights
        return found

    def top(self, query: str, count: int) -> list[int]:
        """Row numbers of the best documents, equal ones in their order."""
        best: list[int] = np.argsort(-self.scores(query), kind="stable")[:count].tolist()
        return best
