"""Hard negatives by positive-aware rules (RECIPE section 4, follow-up report).

`mining_plan` lists the texts to embed, each once, and the documents that are excluded for each query. `search_vectors`
searches one shard of the documents for a block of queries, `merged_hits` merges the hits of two shards, and
`select_negatives` picks the negatives once all shards were searched; no step holds the vectors of more than one shard.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3emb.config.data import MineConfig
from qwen3emb.encoding.nearest import NONE, best_keys, decoded_keys, merged_keys
from qwen3emb.text.false_negatives import Answers, answers_of, true_negatives
from qwen3emb.text.identity import content_id

__all__ = [
    "CorpusSearch",
    "MinePair",
    "MiningPlan",
    "Negatives",
    "QueryBlock",
    "ShardHits",
    "merged_hits",
    "mining_plan",
    "query_blocks",
    "search_vectors",
    "select_negatives",
    "settle_negatives",
    "training_rows",
]


@dataclass(frozen=True)
class MinePair:
    """A query and a document that answers it; `dataset` names the corpus its negatives come from."""

    id: str
    query: str
    document: str
    dataset: str


@dataclass(frozen=True)
class CorpusSearch:
    """The queries of one dataset and the corpus they are mined from.

    Attributes:
        queries: (n,) rows of `MiningPlan.queries`, ascending.
        corpus: rows of `MiningPlan.documents`, distinct, ascending.
        positives: for each query the rows of `MiningPlan.documents` that answer it, over all datasets with the same
            instruction.
        excluded: for each query the rows of `corpus` that must not become its negatives: documents that answer its
            text with any instruction, further known answers, and a document that equals the query.
    """

    queries: list[int]
    corpus: list[int]
    positives: list[tuple[int, ...]]
    excluded: list[tuple[int, ...]]


@dataclass(frozen=True)
class MiningPlan:
    """The texts to embed, and the searches by dataset.

    Attributes:
        queries: texts of the distinct (query, instruction) pairs; a text with two instructions is listed twice.
        documents: distinct documents (by content) of all corpora and pairs.
        pairs: for each `MinePair` its (row of `queries`, row of `documents`).
        searches: dataset -> its search.
        instructions: of each query; None where its dataset has none.
    """

    queries: list[str]
    documents: list[str]
    pairs: list[tuple[int, int]]
    searches: dict[str, CorpusSearch]
    instructions: list[str | None]


@dataclass(frozen=True)
class Negatives:
    """A query's negatives, hardest first: rows of `MiningPlan.documents` and their cosines with the query."""

    rows: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class QueryBlock:
    """A block of Q queries of a search, which every shard of the documents is searched for.

    Attributes:
        rows: (Q,) rows of `MiningPlan.queries`.
        corpus: (C,) int64, ascending: the rows of `MiningPlan.documents` to search.
        excluded: for each query the rows of `MiningPlan.documents` that must not become its negatives.
        owners: (P,) int64, ascending: for each positive the position in `rows` of its query.
        positives: (P,) int64: for each positive its row of `MiningPlan.documents`.
    """

    rows: list[int]
    corpus: np.ndarray
    excluded: list[tuple[int, ...]]
    owners: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class ShardHits:
    """The best documents of one or more shards for a block of queries.

    Attributes:
        keys: (Q, k) int64 keys of the k best documents of each query, see `encoding.nearest`.
        positive_scores: (P,) float32 cosines of `QueryBlock.positives` with their queries; NaN for those in a shard
            that was not searched yet.
    """

    keys: np.ndarray
    positive_scores: np.ndarray


def query_blocks(search: CorpusSearch, size: int) -> Iterator[QueryBlock]:
    """The queries of a search, in order, in blocks of at most `size`."""
    corpus = np.asarray(search.corpus, dtype=np.int64)
    for low in range(0, len(search.queries), size):
        part = slice(low, low + size)
        answers = search.positives[part]
        owners = np.repeat(np.arange(len(answers), dtype=np.int64), [len(rows) for rows in answers])
        flat = np.array([row for rows in answers for row in rows], dtype=np.int64)
        yield QueryBlock(search.queries[part], corpus, search.excluded[part], owners, flat)


def mining_plan(
    pairs: Sequence[MinePair],
    corpora: Mapping[str, Sequence[str]],
    instructions: Mapping[str, str] | None = None,
    known: Answers | None = None,
) -> MiningPlan:
    """List the distinct texts to embed, and the documents that are excluded as negatives of each query.

    Two documents are the same where their content is (`text.identity`): equal up to white space.

    Args:
        pairs: labelled and synthetic pairs; every dataset has a corpus.
        corpora: dataset -> texts to mine from, duplicates allowed.
        instructions: dataset -> instruction of its queries.
        known: further answers of queries, which are excluded as well.
    """
    instructions, known = instructions or {}, known or {}
    document_rows: dict[int, int] = {}
    documents: list[str] = []

    def row_of(text: str) -> int:
        row = document_rows.setdefault(content_id(text), len(documents))
        if row == len(documents):
            documents.append(text)
        return row

    corpus_rows = {dataset: sorted({row_of(t) for t in texts}) for dataset, texts in corpora.items()}
    query_rows = {key: i for i, key in enumerate(dict.fromkeys((p.query, instructions.get(p.dataset)) for p in pairs))}
    hashes = [content_id(q) for q, _ in query_rows]
    numbers = [(query_rows[p.query, instructions.get(p.dataset)], row_of(p.document)) for p in pairs]
    answers: dict[tuple[int, str | None], set[int]] = {}
    text_answers: dict[int, set[int]] = {}  # with any instruction: what answers the text is no safe negative of it
    keys = [(key, instruction) for key, (_, instruction) in zip(hashes, query_rows, strict=True)]
    for query, document in numbers:
        answers.setdefault(keys[query], set()).add(document)
        text_answers.setdefault(hashes[query], set()).add(document)
    searches = {}
    for dataset, corpus in corpus_rows.items():
        queries = sorted({q for p, (q, _) in zip(pairs, numbers, strict=True) if p.dataset == dataset})
        inside = set(corpus)
        known_rows = [
            {document_rows.get(text, NONE) for text in (hashes[q], *known.get(hashes[q], ()))} for q in queries
        ]
        positives = [tuple(sorted(answers[keys[q]])) for q in queries]
        excluded = [
            tuple(sorted({*text_answers[hashes[q]], *rows} & inside))
            for q, rows in zip(queries, known_rows, strict=True)
        ]
        searches[dataset] = CorpusSearch(queries, corpus, positives, excluded)
    return MiningPlan(
        [q for q, _ in query_rows], documents, numbers, searches, [instruction for _, instruction in query_rows]
    )


def search_vectors(queries: np.ndarray, first: int, vectors: np.ndarray, block: QueryBlock, k: int) -> ShardHits:
    """Search one shard of the documents for a block of queries.

    Args:
        queries: (Q, D) float32 unit vectors of the block's queries.
        first: row of `MiningPlan.documents` that the shard begins with.
        vectors: (S, D) float32 unit vectors of the shard.
        block: the queries, the corpus to search and the positives to score.
        k: candidates per query.
    """
    rows = block.corpus[slice(*np.searchsorted(block.corpus, (first, first + len(vectors))))]
    searched = vectors if len(rows) == len(vectors) else vectors[rows - first]
    keys = best_keys(queries, searched, rows, k, block.excluded)
    scores = np.full(len(block.positives), np.nan, dtype=np.float32)
    in_shard = (block.positives >= first) & (block.positives < first + len(vectors))
    answers = vectors[block.positives[in_shard] - first]
    scores[in_shard] = np.einsum("nd,nd->n", queries[block.owners[in_shard]], answers)
    return ShardHits(keys, scores)


def merged_hits(first: ShardHits, second: ShardHits) -> ShardHits:
    """The hits of two shards (or of two sets of shards) for the same block of queries."""
    scores = np.where(np.isnan(first.positive_scores), second.positive_scores, first.positive_scores)
    return ShardHits(merged_keys(first.keys, second.keys), scores)


def select_negatives(block: QueryBlock, hits: ShardHits, rules: MineConfig) -> list[Negatives | None]:
    """The negatives of each query; None where no positive of it scores above `rules.min_positive`.

    The candidates of a query are its `top_k` best documents that are not excluded. After the first `skip_top`
    of them, those that score less than the mean of the positive scores plus `margin`, and less than that mean
    lowered by the share `relative_margin` of its absolute value, are negatives, best first, at most `negatives`.

    Args:
        block: the queries that were searched for.
        hits: the merged hits of all shards.
        rules: the stage's section of the configuration.
    """
    rows, scores = decoded_keys(hits.keys)
    values = scores.astype(np.float64)
    window = np.arange(rows.shape[1]) >= rules.skip_top
    positives = np.split(hits.positive_scores.astype(np.float64), np.flatnonzero(np.diff(block.owners)) + 1)
    chosen: list[Negatives | None] = []
    for candidates, candidate_scores, positive_scores in zip(rows, values, positives, strict=True):
        if not positive_scores.max() > rules.min_positive:
            chosen.append(None)
            continue
        mean = float(positive_scores.mean())
        limit = mean + rules.margin
        if rules.relative_margin is not None:
            limit = min(limit, mean - rules.relative_margin * abs(mean))
        usable = np.flatnonzero(window & (candidates != NONE) & (candidate_scores < limit))[: rules.negatives]
        chosen.append(Negatives(tuple(candidates[usable].tolist()), tuple(candidate_scores[usable].tolist())))
    return chosen


def training_rows(
    pairs: Sequence[MinePair],
    plan: MiningPlan,
    cosines: Mapping[tuple[int, int], float],
    mined: Mapping[tuple[str, int], Negatives | None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows of the pairs whose query has mined negatives, and rejects of the others.

    Args:
        pairs: the pairs that `plan` was made of.
        plan: where their texts are.
        cosines: (query row, document row) -> cosine, for each of `plan.pairs`.
        mined: (dataset, query row) -> negatives; None where the query is rejected.

    Returns:
        (rows of `records.TRAINING_ROW`, rows of `records.REJECT`), both in the order of the pairs; each pair is in
        one of them.
    """
    rows, rejects = [], []
    for pair, (query, document) in zip(pairs, plan.pairs, strict=True):
        score = cosines[query, document]
        negatives = mined[pair.dataset, query]
        if negatives is None:
            rejects.append(_refused(pair, score))
            continue
        row = {"id": pair.id, "query": pair.query, "positive": pair.document, "dataset": pair.dataset}
        texts = [plan.documents[n] for n in negatives.rows]
        scores = {"positive_score": score, "negative_scores": list(negatives.scores), "grade": None}
        rows.append({**row, "negatives": texts, **scores})
    return rows, rejects


def _refused(pair: MinePair, score: float) -> dict[str, Any]:
    payload = json.dumps({"query": pair.query, "positive": pair.document, "score": score}, ensure_ascii=False)
    where = {"id": pair.id, "stage": "mine", "source": pair.dataset, "row": -1}
    return where | {"reason": "positive_below_min", "payload": payload}


def settle_negatives(rows: Sequence[dict[str, Any]], answers: Answers, searched: Collection[str]) -> Counter[str]:
    """Remove false negatives from rows: texts that answer the row's query, the query itself, and repeats.

    Args:
        rows: with `query`, `positive`, `negatives`, `negative_scores`, `dataset`; changed in place.
        answers: query -> its answers, over all datasets in `searched`.
        searched: datasets that share their answers; a dataset outside of it has only those in its own rows.

    Returns:
        The number of removed negatives by reason (`false_negatives.FALSE`).
    """
    pairs_of: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row["dataset"] not in searched:
            pairs_of.setdefault(row["dataset"], []).append((row["query"], row["positive"]))
    by_dataset = {dataset: answers_of(pairs) for dataset, pairs in pairs_of.items()}
    total = Counter[str]()
    for row in rows:
        kept, left_out = true_negatives(row["query"], row["negatives"], by_dataset.get(row["dataset"], answers))
        if left_out:
            total += left_out
            row["negatives"] = [row["negatives"][place] for place in kept]
            row["negative_scores"] = [row["negative_scores"][place] for place in kept if row["negative_scores"]]
    return total
