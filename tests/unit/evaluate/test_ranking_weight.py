"""The reranker's share is taken from the dev set only where it clearly helps."""

from __future__ import annotations

import numpy as np

from qwen3emb.evaluate.ranking import Ranking, best_weight
from qwen3emb.evaluate.retrieval import RetrievalSet

QUERIES, DOCUMENTS = 12, 4
DATA = RetrievalSet(
    {f"q{i}": "q" for i in range(QUERIES)},
    {f"d{j}": ("", "d") for j in range(DOCUMENTS)},
    {f"q{i}": {f"d{i % DOCUMENTS}": 1} for i in range(QUERIES)},
)
FIRST = Ranking(np.tile(np.arange(DOCUMENTS), (QUERIES, 1)), np.tile(np.linspace(0.9, 0.6, DOCUMENTS), (QUERIES, 1)))


def scores(right: set[int], wrong: set[int] = frozenset()) -> list[np.ndarray]:
    """Probabilities that favour the relevant document of queries `right` and another one of `wrong`."""
    out = []
    for i in range(QUERIES):
        row = np.linspace(0.6, 0.4, DOCUMENTS)
        if i in right | wrong:
            row[i % DOCUMENTS if i in right else (i + 1) % DOCUMENTS] = 0.99
        out.append(row)
    return out


def test_a_reranker_that_knows_decides_alone() -> None:
    assert best_weight(DATA, FIRST, scores(set(range(QUERIES)))) == 1.0


def test_one_lucky_query_is_no_reason() -> None:
    assert best_weight(DATA, FIRST, scores({3}, {4})) == 0.0


def test_a_reranker_that_changes_nothing_has_no_share() -> None:
    assert best_weight(DATA, FIRST, scores(set())) == 0.0
