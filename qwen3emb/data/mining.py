"""Hard negatives by positive-aware rules (RECIPE section 4, follow-up report). Pure numpy.

`plan` lists what has to be embedded, each text once, and which documents no query may be given; `choose`
picks the negatives of a block of queries once the vectors are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3emb.config_data import MineConfig
from qwen3emb.data.dedup import content_hash
from qwen3emb.data.nearest import NONE, top_k

__all__ = ["MinePair", "MinePlan", "Negatives", "Search", "choose", "plan"]


@dataclass(frozen=True)
class MinePair:
    """A query and a document that answers it; `origin` names the corpus its negatives come from."""

    id: str
    query: str
    document: str
    origin: str


@dataclass(frozen=True)
class Search:
    """The queries of one origin and the corpus they are mined from.

    Attributes:
        queries: (n,) rows of `MinePlan.queries`, ascending.
        corpus: rows of `MinePlan.documents`, distinct, ascending.
        positives: for each query the rows of `MinePlan.documents` that answer it, of all origins.
        excluded: for each query the places in `corpus` that can be no negative of it: its positives, and a
            document with the query's own text.
    """

    queries: list[int]
    corpus: list[int]
    positives: list[tuple[int, ...]]
    excluded: list[tuple[int, ...]]


@dataclass(frozen=True)
class MinePlan:
    """Everything to embed, and the searches by origin.

    Attributes:
        queries: distinct query texts.
        documents: distinct documents (by content hash) of all corpora and pairs.
        pairs: for each pair (row of `queries`, row of `documents`).
        searches: by origin.
    """

    queries: list[str]
    documents: list[str]
    pairs: list[tuple[int, int]]
    searches: dict[str, Search]


@dataclass(frozen=True)
class Negatives:
    """Places in the corpus of a query's negatives, hardest first, and their scores."""

    rows: tuple[int, ...]
    scores: tuple[float, ...]


def plan(pairs: Sequence[MinePair], corpora: Mapping[str, Sequence[str]]) -> MinePlan:
    """List the distinct texts and what each query may not be given.

    Documents are the same where their content hashes are: equal up to white space.

    Args:
        pairs: labelled and synthetic pairs; every origin has a corpus.
        corpora: origin -> texts to mine from, duplicates allowed.
    """
    document_rows: dict[str, int] = {}
    documents: list[str] = []

    def row_of(text: str) -> int:
        row = document_rows.setdefault(content_hash(text), len(documents))
        if row == len(documents):
            documents.append(text)
        return row

    corpus_rows = {origin: sorted({row_of(t) for t in texts}) for origin, texts in corpora.items()}
    query_rows = {q: i for i, q in enumerate(dict.fromkeys(p.query for p in pairs))}
    hashes = [content_hash(q) for q in query_rows]
    numbers = [(query_rows[p.query], row_of(p.document)) for p in pairs]
    answers: dict[str, set[int]] = {}
    for query, document in numbers:
        answers.setdefault(hashes[query], set()).add(document)
    searches = {}
    for origin, corpus in corpus_rows.items():
        queries = sorted({q for p, (q, _) in zip(pairs, numbers, strict=True) if p.origin == origin})
        place = {row: i for i, row in enumerate(corpus)}
        own = [document_rows.get(hashes[q], NONE) for q in queries]
        positives = [tuple(sorted(answers[hashes[q]])) for q in queries]
        barred = [sorted({*found, text} & place.keys()) for found, text in zip(positives, own, strict=True)]
        searches[origin] = Search(queries, corpus, positives, [tuple(place[r] for r in b) for b in barred])
    return MinePlan(list(query_rows), documents, numbers, searches)


def choose(
    queries: np.ndarray,
    corpus: np.ndarray,
    positive_scores: Sequence[np.ndarray],
    excluded: Sequence[Sequence[int]],
    rules: MineConfig,
) -> list[Negatives | None]:
    """The negatives of each query; None where no positive of it scores above `rules.min_positive`.

    The candidates of a query are its `top_k` best documents that are not excluded. After the first `skip_top`
    of them, those that score less than the mean of the positive scores plus `margin`, and less than that mean
    shortened by `relative_margin`, are negatives, best first, at most `negatives`.

    Args:
        queries: (Q, D) float32 unit vectors.
        corpus: (C, D) float32 unit vectors of distinct documents.
        positive_scores: for each query the cosines of its positives, at least one.
        excluded: for each query places in the corpus that do not count.
        rules: the rules.
    """
    kept = [i for i, scores in enumerate(positive_scores) if float(scores.max()) > rules.min_positive]
    found: list[Negatives | None] = [None] * len(queries)
    rows, scores = top_k(queries[kept], corpus, rules.top_k, [excluded[i] for i in kept])
    for i, candidates, values in zip(kept, rows, scores.astype(np.float64), strict=True):
        mean = float(positive_scores[i].astype(np.float64).mean())
        limit = mean + rules.margin
        if rules.relative_margin is not None:
            limit = min(limit, mean - rules.relative_margin * abs(mean))
        window = np.arange(len(candidates)) >= rules.skip_top
        usable = np.flatnonzero(window & (candidates != NONE) & (values < limit))[: rules.negatives]
        found[i] = Negatives(tuple(candidates[usable].tolist()), tuple(values[usable].tolist()))
    return found
