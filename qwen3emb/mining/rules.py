"""Hard negatives by positive-aware rules (RECIPE section 4, follow-up report).

`mining_plan` lists what has to be embedded, each text once, and which documents no query may be given. `search_vectors`
searches one shard of the documents for a block of queries, `merged_hits` joins what was found in two shards, and
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
        positives: for each query the rows of `MiningPlan.documents` that answer it, of all datasets that ask alike.
        excluded: for each query the rows of `corpus` that can be no negative of it: what answers its text, with
            whatever instruction, what else is known to answer it, and a document with the query's own text.
    """

    queries: list[int]
    corpus: list[int]
    positives: list[tuple[int, ...]]
    excluded: list[tuple[int, ...]]


@dataclass(frozen=True)
class MiningPlan:
    """Everything to embed, and the searches by dataset.

    Attributes:
        queries: query texts; a text that is asked with two instructions is there twice.
        documents: distinct documents (by content) of all corpora and pairs.
        pairs: for each pair (row of `queries`, row of `documents`).
        searches: by dataset.
        instructions: of each query; None where none was given.
    """

    queries: list[str]
    documents: list[str]
    pairs: list[tuple[int, int]]
    searches: dict[str, CorpusSearch]
    instructions: list[str | None]


@dataclass(frozen=True)
class Negatives:
    """Rows of `MiningPlan.documents` of a query's negatives, hardest first, and their scores."""

    rows: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class QueryBlock:
    """A block of a search's queries, and what is asked of every shard for them.

    Attributes:
        rows: rows of `MiningPlan.queries`.
        corpus: (C,) int64, ascending: the rows of `MiningPlan.documents` to search.
        excluded: for each query the rows that do not count.
        owners: (P,) int64, ascending: places of the block's queries, one for each positive of theirs.
        positives: (P,) int64 rows of `MiningPlan.documents` of those positives.
    """

    rows: list[int]
    corpus: np.ndarray
    excluded: list[tuple[int, ...]]
    owners: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class ShardHits:
    """What was found for a block of queries.

    Attributes:
        keys: (Q, k) of the best documents, see `encoding.nearest`.
        positive_scores: (P,) float32 cosines of `Asked.positives` to their queries; NaN where they are in a shard
            that was not searched yet.
    """

    keys: np.ndarray
    positive_scores: np.ndarray


def query_blocks(search: CorpusSearch, size: int) -> Iterator[QueryBlock]:
    """The queries of a search in blocks of at most `size`."""
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
    """List the distinct texts and what each query may not be given.

    Documents are the same where their content is (`text.identity`): equal up to white space.

    Args:
        pairs: labelled and synthetic pairs; every dataset has a corpus.
        corpora: dataset -> texts to mine from, duplicates allowed.
        instructions: dataset -> instruction of its queries.
        known: further answers of queries, which are no negatives either.
    """
    asked, further = instructions or {}, known or {}
    document_rows: dict[int, int] = {}
    documents: list[str] = []

    def row_of(text: str) -> int:
        row = document_rows.setdefault(content_id(text), len(documents))
        if row == len(documents):
            documents.append(text)
        return row

    corpus_rows = {dataset: sorted({row_of(t) for t in texts}) for dataset, texts in corpora.items()}
    query_rows = {key: i for i, key in enumerate(dict.fromkeys((p.query, asked.get(p.dataset)) for p in pairs))}
    hashes = [content_id(q) for q, _ in query_rows]
    numbers = [(query_rows[p.query, asked.get(p.dataset)], row_of(p.document)) for p in pairs]
    answers: dict[tuple[int, str | None], set[int]] = {}
    every: dict[int, set[int]] = {}  # with whatever instruction: what answers the text is no safe negative of it
    keys = [(key, ask) for key, (_, ask) in zip(hashes, query_rows, strict=True)]
    for query, document in numbers:
        answers.setdefault(keys[query], set()).add(document)
        every.setdefault(hashes[query], set()).add(document)
    searches = {}
    for dataset, corpus in corpus_rows.items():
        queries = sorted({q for p, (q, _) in zip(pairs, numbers, strict=True) if p.dataset == dataset})
        inside = set(corpus)
        own = [{document_rows.get(text, NONE) for text in (hashes[q], *further.get(hashes[q], ()))} for q in queries]
        positives = [tuple(sorted(answers[keys[q]])) for q in queries]
        barred = [tuple(sorted({*every[hashes[q]], *texts} & inside)) for q, texts in zip(queries, own, strict=True)]
        searches[dataset] = CorpusSearch(queries, corpus, positives, barred)
    return MiningPlan([q for q, _ in query_rows], documents, numbers, searches, [ask for _, ask in query_rows])


def search_vectors(queries: np.ndarray, first: int, vectors: np.ndarray, asked: QueryBlock, k: int) -> ShardHits:
    """What one shard of the documents has for a block of queries.

    Args:
        queries: (Q, D) float32 unit vectors.
        first: row of `MiningPlan.documents` that the shard begins with.
        vectors: (S, D) float32 unit vectors of the shard.
        asked: what is asked of all shards.
        k: candidates per query.
    """
    rows = asked.corpus[slice(*np.searchsorted(asked.corpus, (first, first + len(vectors))))]
    block = vectors if len(rows) == len(vectors) else vectors[rows - first]
    keys = best_keys(queries, block, rows, k, asked.excluded)
    scores = np.full(len(asked.positives), np.nan, dtype=np.float32)
    here = (asked.positives >= first) & (asked.positives < first + len(vectors))
    answers = vectors[asked.positives[here] - first]
    scores[here] = np.einsum("nd,nd->n", queries[asked.owners[here]], answers)
    return ShardHits(keys, scores)


def merged_hits(one: ShardHits, other: ShardHits) -> ShardHits:
    """What two shards have together."""
    scores = np.where(np.isnan(one.positive_scores), other.positive_scores, one.positive_scores)
    return ShardHits(merged_keys(one.keys, other.keys), scores)


def select_negatives(asked: QueryBlock, found: ShardHits, rules: MineConfig) -> list[Negatives | None]:
    """The negatives of each query; None where no positive of it scores above `rules.min_positive`.

    The candidates of a query are its `top_k` best documents that are not excluded. After the first `skip_top`
    of them, those that score less than the mean of the positive scores plus `margin`, and less than that mean
    shortened by `relative_margin`, are negatives, best first, at most `negatives`.

    Args:
        asked: what was asked.
        found: what all shards together have.
        rules: the rules.
    """
    rows, scores = decoded_keys(found.keys)
    values = scores.astype(np.float64)
    window = np.arange(rows.shape[1]) >= rules.skip_top
    positives = np.split(found.positive_scores.astype(np.float64), np.flatnonzero(np.diff(asked.owners)) + 1)
    chosen: list[Negatives | None] = []
    for candidates, theirs, own in zip(rows, values, positives, strict=True):
        if not own.max() > rules.min_positive:
            chosen.append(None)
            continue
        mean = float(own.mean())
        limit = mean + rules.margin
        if rules.relative_margin is not None:
            limit = min(limit, mean - rules.relative_margin * abs(mean))
        usable = np.flatnonzero(window & (candidates != NONE) & (theirs < limit))[: rules.negatives]
        chosen.append(Negatives(tuple(candidates[usable].tolist()), tuple(theirs[usable].tolist())))
    return chosen


def training_rows(
    pairs: Sequence[MinePair],
    work: MiningPlan,
    cosines: Mapping[tuple[int, int], float],
    found: Mapping[tuple[str, int], Negatives | None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, rejects), one of them for each pair, in the order of the pairs."""
    rows, rejects = [], []
    for pair, (query, document) in zip(pairs, work.pairs, strict=True):
        score = cosines[query, document]
        negatives = found[pair.dataset, query]
        if negatives is None:
            rejects.append(_refused(pair, score))
            continue
        row = {"id": pair.id, "query": pair.query, "positive": pair.document, "dataset": pair.dataset}
        texts = [work.documents[n] for n in negatives.rows]
        scores = {"positive_score": score, "negative_scores": list(negatives.scores), "grade": None}
        rows.append({**row, "negatives": texts, **scores})
    return rows, rejects


def _refused(pair: MinePair, score: float) -> dict[str, Any]:
    payload = json.dumps({"query": pair.query, "positive": pair.document, "score": score}, ensure_ascii=False)
    where = {"id": pair.id, "stage": "mine", "source": pair.dataset, "row": -1}
    return where | {"reason": "positive_below_min", "payload": payload}


def settle_negatives(rows: Sequence[dict[str, Any]], answers: Answers, searched: Collection[str]) -> Counter[str]:
    """Take out of rows the negatives that are none; how many, by `false_negatives.FALSE`.

    Args:
        rows: with `query`, `positive`, `negatives`, `negative_scores`, `dataset`; changed in place.
        answers: of the queries of the datasets `searched`, over all of these.
        searched: datasets whose positives answer the query in all of them; another dataset's only in itself.
    """
    own: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row["dataset"] not in searched:
            own.setdefault(row["dataset"], []).append((row["query"], row["positive"]))
    by_dataset = {dataset: answers_of(pairs) for dataset, pairs in own.items()}
    total = Counter[str]()
    for row in rows:
        kept, left_out = true_negatives(row["query"], row["negatives"], by_dataset.get(row["dataset"], answers))
        if left_out:
            total += left_out
            row["negatives"] = [row["negatives"][place] for place in kept]
            row["negative_scores"] = [row["negative_scores"][place] for place in kept if row["negative_scores"]]
    return total
