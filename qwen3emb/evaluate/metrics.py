"""nDCG@10, MRR@10 and recall@k, computed by pytrec_eval as MTEB and BEIR do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qwen3emb.evaluate.retrieval import RetrievalSet

__all__ = ["per_query", "retrieval_metrics", "run_metrics", "top_run"]

Run = Mapping[str, Mapping[str, float]]


def top_run(data: RetrievalSet, scores: np.ndarray, top: int) -> dict[str, dict[str, float]]:
    """query id -> {document id: score} of the `top` best documents, from a (queries, documents) score matrix."""
    documents = list(data.corpus)
    top = min(top, len(documents))
    run = {}
    for query, row in zip(data.queries, scores, strict=True):
        best = np.argpartition(-row, top - 1)[:top]
        run[query] = {documents[i]: float(row[i]) for i in best}
    return run


def per_query(data: RetrievalSet, run: Run, recall_at: Sequence[int]) -> dict[str, dict[str, float]]:
    """query id -> {"ndcg@10", "mrr@10", "recall@k"}."""
    import pytrec_eval

    cuts = ",".join(str(k) for k in recall_at)
    qrels = {q: dict(found) for q, found in data.qrels.items() if q in run}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", f"recall.{cuts}"})
    raw = evaluator.evaluate({q: dict(found) for q, found in run.items()})
    out = {}
    for query, values in raw.items():
        order = sorted(run[query].items(), key=lambda item: (-item[1], item[0]))[:10]
        hits = [n for n, (document, _) in enumerate(order, 1) if data.qrels[query].get(document, 0) > 0]
        out[query] = {"ndcg@10": values["ndcg_cut_10"], "mrr@10": 1 / hits[0] if hits else 0.0}
        out[query] |= {f"recall@{k}": values[f"recall_{k}"] for k in recall_at}
    return out


def run_metrics(data: RetrievalSet, run: Run, recall_at: Sequence[int]) -> dict[str, float]:
    """Means over the judged queries, rounded to five digits."""
    rows = list(per_query(data, run, recall_at).values())
    return {name: round(float(np.mean([r[name] for r in rows])), 5) for name in rows[0]} if rows else {}


def retrieval_metrics(data: RetrievalSet, scores: np.ndarray, recall_at: Sequence[int]) -> dict[str, float]:
    """`run_metrics` of a (queries, documents) score matrix."""
    return run_metrics(data, top_run(data, scores, max(10, *recall_at)), recall_at)
