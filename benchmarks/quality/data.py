"""SciFact and the other sets: what is trained on, what settings are chosen on, and what is measured."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.quality.bm25 import Bm25
from qwen3emb.core.storage import Storage
from qwen3emb.metrics.retrieval import per_query
from qwen3emb.text.retrieval_set import RetrievalSet, read_beir

__all__ = ["DATA", "INSTRUCTION", "Row", "candidates", "labelled", "ndcg", "of", "synthetic"]

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
INSTRUCTION = "Given a scientific claim, retrieve documents that support or refute the claim"
DEV_QUERIES, DEV_DOCUMENTS = 300, 300
TEST_DOCUMENTS = 1500  # of SciFact's 5,183: on two cores a model reads them in five minutes instead of fifteen
RERANKED_QUERIES = 60  # of the test split: a reranker reads 50 documents for each
TRIED_QUERIES = 40  # of the dev split, by which a reranker's settings are chosen
SMALL, SMALL_QUERIES = "/small", 20
HARD_FROM, HARD_TO = 2, 50  # BM25 ranks of hard negatives: the first are often unlabelled answers

Row = tuple[str, str, tuple[str, ...]]
"""Query, a document that answers it, hard negatives."""


def smaller(data: RetrievalSet, most: int = DEV_QUERIES) -> RetrievalSet:
    """At most so many of the queries, what answers them, and other documents up to `DEV_DOCUMENTS`."""
    draw = random.Random(0)
    queries = sorted(data.queries)
    chosen = set(draw.sample(queries, min(most, len(queries))))
    answers = {document for query in chosen for document in data.qrels[query]}
    others = [document for document in data.corpus if document not in answers]
    kept = answers | set(draw.sample(others, min(len(others), max(0, DEV_DOCUMENTS - len(answers)))))
    return RetrievalSet(
        {q: t for q, t in data.queries.items() if q in chosen},
        {d: t for d, t in data.corpus.items() if d in kept},
        {q: data.qrels[q] for q in chosen},
    )


@cache
def _scifact(split: str) -> RetrievalSet:
    return read_beir(Storage(str(DATA / "scifact")), split)


def _held_out() -> set[str]:
    """A tenth of SciFact's training queries, the dev split."""
    queries = sorted(_scifact("train").queries)
    return set(random.Random(0).sample(queries, len(queries) // 10))


def _without_others(data: RetrievalSet, queries: set[str]) -> RetrievalSet:
    texts = {q: data.queries[q] for q in data.queries if q in queries}
    return RetrievalSet(texts, data.corpus, {q: data.qrels[q] for q in texts})


def _some(queries: Iterable[str], most: int) -> set[str]:
    return set(random.Random(0).sample(sorted(queries), most))


def with_hardest(data: RetrievalSet, most: int = TEST_DOCUMENTS) -> RetrievalSet:
    """All queries, what answers them, and of the other documents the `most` less those that BM25 ranks first for them.

    Chance would leave documents that no model confuses with an answer.
    """
    index, names = Bm25(data.texts()), list(data.corpus)
    rankings = [index.top(text, 100) for text in data.queries.values()]
    kept = {document for grades in data.qrels.values() for document in grades}
    for found in zip_longest(*rankings):
        for row in found:
            if row is not None and len(kept) < most:
                kept.add(names[row])
    return RetrievalSet(data.queries, {d: t for d, t in data.corpus.items() if d in kept}, data.qrels)


@cache
def of(name: str) -> RetrievalSet:
    """A set by name: `test` and `dev` of SciFact with a part of its documents, `test/whole`, `dev/whole` and `reranked`
    with all of them, or FOLDER/SPLIT.

    A name ends in `/small` for trying the benchmark out: few queries and documents.
    """
    if name.endswith(SMALL):
        return smaller(of(name.removesuffix(SMALL)), SMALL_QUERIES)
    if name in ("dev", "dev/whole"):
        held_out = _held_out()
        if name == "dev":
            return smaller(_without_others(_scifact("train"), held_out))
        return _without_others(_scifact("train"), _some(held_out, TRIED_QUERIES))
    if name == "test":
        return with_hardest(_scifact("test"))
    if name in ("test/whole", "reranked"):
        data = _scifact("test")
        return data if name == "test/whole" else _without_others(data, _some(data.queries, RERANKED_QUERIES))
    folder, _, split = name.rpartition("/")
    return smaller(read_beir(Storage(str(DATA / folder)), split))


def labelled(negatives: int = 0, seed: int = 0, most: int | None = None, others: int = 0) -> list[Row]:
    """SciFact's training pairs without the queries of the dev split, and without texts that are test queries as well.

    Args:
        negatives: hard ones of each query, drawn from BM25's ranks `HARD_FROM` to `HARD_TO`.
        seed: of the draws.
        most: so many pairs, drawn with seed 0.
        others: further negatives of each query, drawn from the positives of others.
    """
    data = _scifact("train")
    held = {text for name in ("dev", "test") for text in of(name).queries.values()}
    texts = dict(zip(data.corpus, data.texts(), strict=True))
    pairs = [(q, d) for q in sorted(data.queries) if data.queries[q] not in held for d in sorted(data.qrels[q])]
    if most is not None:
        pairs = random.Random(0).sample(pairs, min(most, len(pairs)))
    if not negatives:
        return [(data.queries[q], texts[d], ()) for q, d in pairs]
    index, names, draw = Bm25(list(texts.values())), list(texts), random.Random(seed)
    positives = sorted({d for _, d in pairs})
    rows: list[Row] = []
    for query, document in pairs:
        near = [names[i] for i in index.top(data.queries[query], HARD_TO)[HARD_FROM:]]
        hard = draw.sample([d for d in near if d not in data.qrels[query]], negatives)
        easy = draw.sample([d for d in positives if d not in data.qrels[query] and d not in hard], others)
        rows.append((data.queries[query], texts[document], tuple(texts[d] for d in [*hard, *easy])))
    return rows


def synthetic(folder: Path) -> list[Row]:
    """The pairs of a run's stage `synthesize` or `filter`, without what is evaluated on.

    Raises:
        SystemExit: there are none.
    """
    files = sorted(folder.rglob("pairs/*.parquet"))
    found = [row for file in files for row in pq.read_table(file, columns=["query", "document"]).to_pylist()]
    if not found:
        raise SystemExit(f"quality, low-label: no pairs/*.parquet in {folder}; make them with the part `pairs`")
    evaluated = {text.lower() for name in ("test", "dev") for text in of(name).queries.values()}
    return [(row["query"], row["document"], ()) for row in found if row["query"].lower() not in evaluated]


def ndcg(data: RetrievalSet, run: dict[str, dict[str, float]]) -> dict[str, float]:
    """Query -> nDCG@10; a query of the set that the run lacks counts as 0."""
    found = per_query(data, run, [10])
    return {query: found.get(query, {"ndcg@10": 0.0})["ndcg@10"] for query in data.queries}


def candidates(data: RetrievalSet, depth: int) -> dict[str, list[str]]:
    """Query -> the ids of BM25's best documents."""
    index, names = Bm25(data.texts()), list(data.corpus)
    return {query: [names[i] for i in index.top(text, depth)] for query, text in data.queries.items()}


def in_order(documents: Sequence[str]) -> dict[str, float]:
    """The run of one query's documents, best first, whose scores say no more than their order."""
    return {document: float(-place) for place, document in enumerate(documents)}
