"""Retrieval metrics against their definitions, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.evaluate.metrics import per_query, retrieval_metrics, run_metrics, top_run
from qwen3emb.evaluate.retrieval import RetrievalSet

DOCUMENTS = [f"d{i}" for i in range(14)]


def ndcg(ranked: list[str], grades: dict[str, int], cut: int) -> float:
    """Sum of grade / log2(rank + 1) over the first `cut`, by the same of the best order (Jarvelin 2002)."""
    got = sum(grades.get(d, 0) / math.log2(rank + 1) for rank, d in enumerate(ranked[:cut], 1))
    ideal = sorted(grades.values(), reverse=True)[:cut]
    best = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ideal, 1))
    return got / best if best else 0.0


def reciprocal_rank(ranked: list[str], grades: dict[str, int], cut: int) -> float:
    for rank, document in enumerate(ranked[:cut], 1):
        if grades.get(document, 0) > 0:
            return 1 / rank
    return 0.0


def recall(ranked: list[str], grades: dict[str, int], cut: int) -> float:
    relevant = {d for d, grade in grades.items() if grade > 0}
    return len(relevant & set(ranked[:cut])) / len(relevant) if relevant else 0.0


def retrieval_set(qrels: dict[str, dict[str, int]], queries: list[str]) -> RetrievalSet:
    return RetrievalSet({q: q for q in queries}, {d: ("", d) for d in DOCUMENTS}, qrels)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.permutations(DOCUMENTS), min_size=1, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3), min_size=1), min_size=4, max_size=4),
    st.integers(1, 14),
)
def test_metrics_are_their_definitions(orders: list[list[str]], grades: list[dict[str, int]], kept: int) -> None:
    queries = [f"q{i}" for i in range(len(orders))]
    qrels = dict(zip(queries, grades, strict=False))
    run = {q: {d: -float(r) for r, d in enumerate(order[:kept])} for q, order in zip(queries, orders, strict=True)}
    found = per_query(retrieval_set(qrels, queries), run, [1, 3, 10])
    for query, order in zip(queries, orders, strict=True):
        ranked = order[:kept]
        want = {
            "ndcg@10": ndcg(ranked, qrels[query], 10),
            "mrr@10": reciprocal_rank(ranked, qrels[query], 10),
        }
        want |= {f"recall@{k}": recall(ranked, qrels[query], k) for k in (1, 3, 10)}
        assert found[query] == pytest.approx(want, abs=1e-9)


def test_a_worked_example() -> None:
    qrels = {"q": {"d0": 1, "d1": 2}}
    run = {"q": {"d5": 0.9, "d1": 0.8, "d6": 0.7, "d0": 0.6}}
    found = run_metrics(retrieval_set(qrels, ["q"]), run, [1, 2, 4])
    want = (2 / math.log2(3) + 1 / math.log2(5)) / (2 + 1 / math.log2(3))
    assert found == {
        "ndcg@10": round(want, 5),
        "mrr@10": 0.5,
        "recall@1": 0.0,
        "recall@2": 0.5,
        "recall@4": 1.0,
    }


def test_means_are_over_the_judged_queries() -> None:
    data = retrieval_set({"a": {"d0": 1}, "b": {"d1": 1}}, ["a", "b", "unjudged"])
    run = {"a": {"d0": 1.0}, "b": {"d0": 1.0}, "unjudged": {"d0": 1.0}}
    assert run_metrics(data, run, [1]) == {"ndcg@10": 0.5, "mrr@10": 0.5, "recall@1": 0.5}


def test_a_hit_below_rank_ten_counts_for_recall_only() -> None:
    run = {"q": {d: -float(i) for i, d in enumerate(DOCUMENTS)}}
    found = run_metrics(retrieval_set({"q": {"d10": 1}}, ["q"]), run, [10, 11])
    assert found == {"ndcg@10": 0.0, "mrr@10": 0.0, "recall@10": 0.0, "recall@11": 1.0}


def test_score_matrix_and_its_run_give_the_same() -> None:
    scores = np.random.default_rng(0).standard_normal((2, len(DOCUMENTS)))
    data = retrieval_set({"a": {"d3": 1, "d4": 1}, "b": {"d9": 2}}, ["a", "b"])
    run = top_run(data, scores, 5)
    for query, row in zip(("a", "b"), scores, strict=True):
        assert set(run[query]) == {DOCUMENTS[i] for i in np.argsort(-row)[:5]}
    full = {q: dict(zip(DOCUMENTS, row, strict=True)) for q, row in zip(("a", "b"), scores, strict=True)}
    assert retrieval_metrics(data, scores, [1, 10]) == run_metrics(data, full, [1, 10])
