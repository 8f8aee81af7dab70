"""nDCG@10, MRR@10 and recall@k, computed by pytrec_eval as MTEB and BEIR do.

A query that is a document too (ArguAna, Quora) would retrieve itself. BEIR always leaves out the document with the
query's id; mteb does so only in tasks with `ignore_identical_ids`, because in others ids are equal by chance: query 1
of a set need not be its document 1. A folder does not state which of the two holds, so here the text decides: see
`own_documents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qwen3emb.metrics.order import best_first
from qwen3emb.text.documents import document_text
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import RetrievalSet

__all__ = ["own_documents", "per_query", "retrieval_metrics", "run_metrics", "top_run"]

Run = Mapping[str, Mapping[str, float]]


def own_documents(data: RetrievalSet) -> list[list[int]]:
    """For each query the row in the corpus of the document that is the query itself, which must not count; [] without.

    That is the document with the query's id and text (alone, or after the title; white space is normalised), unless it
    is judged relevant to the query.
    """
    places = {name: place for place, name in enumerate(data.corpus) if name in data.queries}
    return [[places[query]] if query in places and _is_own(data, query) else [] for query in data.queries]


def _is_own(data: RetrievalSet, query: str) -> bool:
    if query not in data.corpus or data.qrels.get(query, {}).get(query, 0) > 0:
        return False
    title, text = data.corpus[query]
    return content_hash(data.queries[query]) in {content_hash(text), content_hash(document_text(title, text))}


def top_run(data: RetrievalSet, scores: np.ndarray, top: int) -> dict[str, dict[str, float]]:
    """The best documents of each query.

    Args:
        data: the retrieval set.
        scores: (queries, documents), in the order of the set.
        top: documents of each query; its own document is not among them.

    Returns:
        query id -> {document id: score}.
    """
    documents = list(data.corpus)
    run = {}
    for query, row, excluded in zip(data.queries, scores, own_documents(data), strict=True):
        best = [i for i in best_first(row, top + len(excluded)).tolist() if i not in excluded][:top]
        run[query] = {documents[i]: float(row[i]) for i in best}
    return run


def per_query(data: RetrievalSet, run: Run, recall_at: Sequence[int]) -> dict[str, dict[str, float]]:
    """The metrics of each judged query; a query's own document does not count (`own_documents`).

    Args:
        data: the retrieval set with its judgments.
        run: query id -> {document id: score}.
        recall_at: the k of recall@k.

    Returns:
        query id -> {"ndcg@10", "mrr@10", "recall@k"}, each in [0, 1].
    """
    import pytrec_eval

    run = {q: {d: s for d, s in scores.items() if d != q or not _is_own(data, q)} for q, scores in run.items()}
    cuts = ",".join(str(k) for k in recall_at)
    qrels = {q: dict(grades) for q, grades in data.qrels.items() if q in run}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", f"recall.{cuts}"})
    raw = evaluator.evaluate(run)
    out = {}
    for query, values in raw.items():
        order = sorted(run[query].items(), key=lambda item: (-item[1], item[0]))[:10]
        hits = [n for n, (document, _) in enumerate(order, 1) if data.qrels[query].get(document, 0) > 0]
        out[query] = {"ndcg@10": values["ndcg_cut_10"], "mrr@10": 1 / hits[0] if hits else 0.0}
        out[query] |= {f"recall@{k}": values[f"recall_{k}"] for k in recall_at}
    return out


def run_metrics(data: RetrievalSet, run: Run, recall_at: Sequence[int]) -> dict[str, float]:
    """metric -> mean over the judged queries, rounded to five digits; arguments as in `per_query`."""
    rows = list(per_query(data, run, recall_at).values())
    return {name: round(float(np.mean([r[name] for r in rows])), 5) for name in rows[0]} if rows else {}


def retrieval_metrics(data: RetrievalSet, scores: np.ndarray, recall_at: Sequence[int]) -> dict[str, float]:
    """`run_metrics` of a (queries, documents) score matrix."""
    return run_metrics(data, top_run(data, scores, max(10, *recall_at)), recall_at)
