"""Rankings: from vectors, re-ordered by a reranker, and through Parquet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from qwen3emb.encoding.nearest import NONE
from qwen3emb.evaluation.ranking import Ranking, nearest, ranking_metrics, read_run, reranked, run_table
from qwen3emb.text.retrieval_set import RetrievalSet

DATA = RetrievalSet(
    {"q0": "first", "q1": "second"},
    {f"d{i}": ("", f"text {i}") for i in range(4)},
    {"q0": {"d2": 1}, "q1": {"d0": 1, "d1": 2}},
)
FIRST = Ranking(
    np.array([[3, 1, 0, 2], [0, 1, 2, 3]]), np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]], np.float32)
)


def test_nearest_ranks_by_cosine_and_stops_at_the_corpus() -> None:
    documents = np.eye(3, dtype=np.float32)
    found = nearest(np.array([[0.1, 0.7, 0.2]], dtype=np.float32), documents, 100)
    assert found.rows.tolist() == [[1, 2, 0]]
    assert np.allclose(found.scores, [[0.7, 0.2, 0.1]])


def test_reranking_moves_the_top_only_and_keeps_the_order_of_ties() -> None:
    found = reranked(FIRST, [np.array([0.5, 0.5, 0.9], np.float32), np.array([0.1, 0.2, 0.2], np.float32)])
    assert found.rows.tolist() == [[0, 3, 1, 2], [1, 2, 0, 3]]
    assert np.array_equal(found.scores[:, :3], np.array([[0.9, 0.5, 0.5], [0.2, 0.2, 0.1]], np.float32))
    assert np.isnan(found.scores[:, 3]).all()
    assert FIRST.rows.tolist() == [[3, 1, 0, 2], [0, 1, 2, 3]]


def test_metrics_of_equal_scores_follow_the_rank() -> None:
    rows = np.array([[2, 0, 1, 3], [3, 2, 1, 0]])
    tied = Ranking(rows, np.ones(rows.shape, np.float32))
    found = ranking_metrics(DATA, tied, [1, 4])
    assert found["mrr@10"] == round((1 + 1 / 3) / 2, 5)
    assert found["recall@1"] == 0.5 and found["recall@4"] == 1.0


def test_a_run_comes_back_from_its_table() -> None:
    rows = np.array([[3, 1, NONE], [0, 2, 1]])
    scores = np.array([[0.5, -0.25, np.nan], [1.0, np.nan, np.nan]], np.float32)
    table = run_table(DATA, Ranking(rows, scores))
    assert table.to_pylist()[:2] == [
        {"query_id": "q0", "corpus_id": "d3", "rank": 1, "score": 0.5},
        {"query_id": "q0", "corpus_id": "d1", "rank": 2, "score": -0.25},
    ]
    assert table["score"].null_count == 2 and len(table) == 5
    back = read_run(DATA, pa.concat_tables([table.slice(3), table.slice(0, 3)]))
    assert back.rows.tolist() == rows.tolist()
    assert np.array_equal(back.scores, scores, equal_nan=True)
