"""Rankings of the documents of a retrieval set: from vectors, re-ordered by a reranker, scored, and as Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from qwen3emb.encoding.nearest import NONE, top_k
from qwen3emb.metrics.order import best_first
from qwen3emb.metrics.retrieval import per_query, run_metrics
from qwen3emb.text.retrieval_set import RetrievalSet

__all__ = [
    "RUN",
    "Ranking",
    "nearest",
    "ranking_metrics",
    "ranking_per_query",
    "read_run",
    "reranked",
    "run_table",
]

RUN = pa.schema([("query_id", pa.string()), ("corpus_id", pa.string()), ("rank", pa.int32()), ("score", pa.float32())])
"""A run: `rank` counts from 1; `score` is null for documents that a reranker did not score."""


@dataclass(frozen=True)
class Ranking:
    """The best documents of each query of a retrieval set.

    Attributes:
        rows: (Q, k) int64 row numbers in the corpus, best first; `NONE` where there are fewer documents.
        scores: (Q, k) float32; NaN where a document was ranked without a score.
    """

    rows: np.ndarray
    scores: np.ndarray


def nearest(
    queries: np.ndarray, documents: np.ndarray, depth: int, excluded: Sequence[Sequence[int]] | None = None
) -> Ranking:
    """Rank the documents by inner product with each query.

    Args:
        queries: (Q, D) float32.
        documents: (C, D) float32.
        depth: documents to keep of each query.
        excluded: for each query the rows of documents that do not count (`metrics.retrieval.own_documents`).
    """
    rows, scores = top_k(queries, documents, min(depth, len(documents)), excluded)
    return Ranking(rows, scores)


def reranked(first: Ranking, scores: Sequence[np.ndarray], weight: float = 1.0) -> Ranking:
    """Re-order the top documents of each query in `first`; equal scores keep the order of `first`.

    Args:
        first: the ranking whose top was scored.
        scores: for query i the reranker's probabilities of its first `len(scores[i])` documents; the others follow in
            the order of `first`.
        weight: share of the reranker's logit against the score in `first`, both standardised over the query's
            documents; 1 = the reranker alone decides, as in the paper.
    """
    rows, values = first.rows.copy(), np.full(first.scores.shape, np.nan, dtype=np.float32)
    for i, probabilities in enumerate(scores):
        first_scores = first.scores[i, : len(probabilities)]
        mixed = probabilities
        if weight != 1:
            mixed = weight * _standardised(_logit(probabilities)) + (1 - weight) * _standardised(first_scores)
        order = best_first(mixed)
        rows[i, : len(probabilities)] = first.rows[i, order]
        values[i, : len(probabilities)] = mixed[order]
    return Ranking(rows, values)


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _standardised(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / (values.std() + 1e-9))


def ranking_per_query(data: RetrievalSet, ranking: Ranking, recall_at: Sequence[int]) -> dict[str, dict[str, float]]:
    """Judged query id -> metric -> value; only the ranks count, so that equal scores have one outcome."""
    return per_query(data, _as_run(data, ranking), recall_at)


def ranking_metrics(data: RetrievalSet, ranking: Ranking, recall_at: Sequence[int]) -> dict[str, float]:
    """metric -> mean over the judged queries; only the ranks count, so that equal scores have one outcome."""
    return run_metrics(data, _as_run(data, ranking), recall_at)


def _as_run(data: RetrievalSet, ranking: Ranking) -> dict[str, dict[str, float]]:
    """query id -> {document id: depth - rank}, a score that is higher for better ranks."""
    documents, depth = list(data.corpus), ranking.rows.shape[1]
    return {
        query: {documents[row]: float(depth - rank) for rank, row in enumerate(rows) if row != NONE}
        for query, rows in zip(data.queries, ranking.rows.tolist(), strict=True)
    }


def run_table(data: RetrievalSet, ranking: Ranking) -> pa.Table:
    """The ranking as a table of `RUN`."""
    count, depth = ranking.rows.shape
    kept = (ranking.rows != NONE).reshape(-1)
    corpus = pa.array(list(data.corpus), pa.string())
    queries = pa.array(list(data.queries), pa.string())
    columns = [
        queries.take(pa.array(np.repeat(np.arange(count), depth)[kept])),
        corpus.take(pa.array(ranking.rows.reshape(-1)[kept])),
        pa.array(np.tile(np.arange(1, depth + 1, dtype=np.int32), count)[kept]),
        pa.array(ranking.scores.reshape(-1)[kept], pa.float32(), from_pandas=True),  # NaN becomes null
    ]
    return pa.Table.from_arrays(columns, schema=RUN)


def read_run(data: RetrievalSet, table: pa.Table) -> Ranking:
    """The ranking that `run_table` wrote for the same retrieval set."""
    places = {name: i for i, name in enumerate(data.corpus)}
    numbers = {name: i for i, name in enumerate(data.queries)}
    query = np.array([numbers[q] for q in table["query_id"].to_pylist()], dtype=np.int64)
    rank = table["rank"].to_numpy() - 1
    rows = np.full((len(numbers), int(rank.max(initial=0)) + 1), NONE, dtype=np.int64)
    scores = np.full(rows.shape, np.nan, dtype=np.float32)
    rows[query, rank] = [places[d] for d in table["corpus_id"].to_pylist()]
    scores[query, rank] = table["score"].to_numpy()
    return Ranking(rows, scores)
