"""Retrieval metrics against their definitions, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.evaluation.ranking import nearest, ranking_metrics
from qwen3emb.metrics.retrieval import own_documents, per_query, retrieval_metrics, run_metrics, top_run
from qwen3emb.text.retrieval_set import RetrievalSet

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


def arguments() -> tuple[RetrievalSet, np.ndarray, np.ndarray]:
    """Six arguments that are documents too, each with a counter-argument that is its nearest other document."""
    rng, count = np.random.default_rng(0), 6
    documents = rng.normal(size=(2 * count, 8)).astype(np.float32)
    documents[count:] = documents[:count] + 0.05 * rng.normal(size=(count, 8))
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    texts = {f"arg{i}": f"argument {i}" for i in range(count)}
    corpus = {i: ("", t) for i, t in texts.items()} | {f"counter{i}": ("", f"answer {i}") for i in range(count)}
    qrels = {f"arg{i}": {f"counter{i}": 1} for i in range(count)}
    return RetrievalSet(texts, corpus, qrels), documents[:count], documents


def as_pytrec(data: RetrievalSet, scores: np.ndarray, depth: int) -> dict[str, float]:
    """What pytrec_eval says of the best documents that are not the query's own id, as BEIR and mteb do."""
    import pytrec_eval

    run = {}
    for query, row in zip(data.queries, scores, strict=True):
        found = {d: float(s) for d, s in zip(data.corpus, row, strict=True) if d != query}
        run[query] = dict(sorted(found.items(), key=lambda item: -item[1])[:depth])
    judged = pytrec_eval.RelevanceEvaluator(data.qrels, {"ndcg_cut.10", "recall.1,2"}).evaluate(run)
    names = {"ndcg@10": "ndcg_cut_10", "recall@1": "recall_1", "recall@2": "recall_2"}
    return {name: round(float(np.mean([row[theirs] for row in judged.values()])), 5) for name, theirs in names.items()}


def test_a_query_does_not_find_itself() -> None:
    data, queries, documents = arguments()
    scores = queries @ documents.T
    wanted = as_pytrec(data, scores, 10)
    assert wanted["recall@1"] == 1.0
    for depth in (1, 2, 10, 100):
        ranking = nearest(queries, documents, depth, own_documents(data))
        assert ranking.rows.shape[1] == min(depth, 12)
        found = ranking_metrics(data, ranking, [1, 2])
        assert {name: found[name] for name in wanted} == as_pytrec(data, scores, depth), depth
    for found in (
        retrieval_metrics(data, scores, [1, 2]),
        ranking_metrics(data, nearest(queries, documents, 10), [1, 2]),
    ):
        assert {name: found[name] for name in wanted} == wanted
    assert all(len(found) == 3 and query not in found for query, found in top_run(data, scores, 3).items())


@pytest.mark.parametrize("grades", [{"0": 1, "9": 1}, {"9": 1}])
@pytest.mark.parametrize(("title", "text"), [("", "Ein  Text"), ("Ein", "Text"), ("t", "Ein Text")])
@pytest.mark.parametrize("other", [False, True])
def test_own_is_the_same_id_and_text_and_not_what_is_judged_relevant(
    grades: dict[str, int], title: str, text: str, other: bool
) -> None:
    data = RetrievalSet({"0": "Ein Text"}, {"9": ("", "x"), "0": (title, "another" if other else text)}, {"0": grades})
    left_out = not other and "0" not in grades
    assert own_documents(data) == [[1] if left_out else []]
    found = per_query(data, {"0": {"0": 2.0, "9": 1.0}}, [1])
    assert found["0"]["mrr@10"] == (1.0 if left_out or "0" in grades else 0.5)
