"""Queries for dev and held-out documents: how their drafts are written, and which draft is the passage's query.

Of the drafts of a passage that passed all gates and repeat no other query, only those count that find it: the retrieval
model has the passage among the best of all passages. Of these the one with the smallest share of words from the passage
is taken, so that matching words is not all that the evaluation asks for. A passage without such a draft is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3emb.config.data import SynthesizeConfig, WrittenQueriesConfig
from qwen3emb.core.draws import chosen_by_hash, hash_place
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.rejects import escaped
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.gates import duplicate_queries
from qwen3emb.text.documents import document_text
from qwen3emb.text.near_duplicates import shingles
from qwen3emb.text.passages import passages_as_corpus
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set

__all__ = [
    "Draft",
    "chosen_drafts",
    "draft_config",
    "draft_folder",
    "outranked",
    "passage_document",
    "read_drafts",
    "repeated_drafts",
    "word_share",
    "write_set",
]

_SKIPPED = "skipped"
_ROUNDING = 1e-6  # of cosines that are computed in other batches


@dataclass(frozen=True)
class Draft:
    """A query that was written for a dev or held-out passage.

    Attributes:
        id: of the pair.
        passage: id of the passage.
        query, document: texts.
        language: code of the query's.
    """

    id: str
    passage: str
    query: str
    document: str
    language: str


def draft_folder(split: str) -> str:
    """Where the drafts of a split lie, below the stage's folder: `pairs/` and `rejects/` as of training pairs."""
    return f"drafts/{split}"


def draft_config(cfg: SynthesizeConfig, written: WrittenQueriesConfig) -> SynthesizeConfig:
    """How drafts are written: retrieval queries only, several for each passage, and fewer copied words."""
    copied = (
        written.copied_share if cfg.gates.copied_share is None else min(written.copied_share, cfg.gates.copied_share)
    )
    gates = cfg.gates.model_copy(update={"copied_share": copied})
    changed = {"tasks": {"retrieval": 1.0}, "queries_per_passage": written.drafts, "gates": gates}
    return cfg.model_copy(update=changed)


def read_drafts(out: Storage, split: str) -> list[Draft]:
    """The written drafts of a split, in the order of the passages."""
    rows = (out / draft_folder(split)).read_table("pairs", PAIR).to_pylist()
    return [Draft(r["id"], r["document_id"], r["query"], r["document"], r["language"]) for r in rows]


def word_share(query: str, document: str) -> float:
    """Share of a query's distinct words (characters in scripts without spaces) that stand in the document."""
    words = shingles(query, 1)
    return float(np.isin(words, shingles(document, 1)).mean()) if len(words) else 0.0


def repeated_drafts(drafts: Sequence[Draft], training: Sequence[str], threshold: float | None) -> dict[str, str]:
    """Id of each draft that repeats a training query or an earlier draft of another passage -> why.

    Args:
        drafts: of all splits, in the order in which they count.
        training: queries of the training pairs.
        threshold: of `gates.near_duplicate_query`; None compares texts only.
    """
    ids = [*(f"training query {n}" for n in range(len(training))), *(draft.id for draft in drafts)]
    texts = [*training, *(draft.query for draft in drafts)]
    repeated = duplicate_queries(ids, texts, 1.0 if threshold is None else threshold)
    return {draft.id: repeated[draft.id] for draft in drafts if draft.id in repeated}


def chosen_drafts(
    drafts: Sequence[Draft],
    asked: Sequence[str],
    repeated: Mapping[str, str],
    ranks: Mapping[str, int],
    found_within: int,
    wanted: int,
    seed: int,
) -> tuple[list[Draft], dict[str, str]]:
    """The queries of a split, and why the other passages have none.

    Args:
        drafts: those that passed the gates.
        asked: ids of all passages that were asked about.
        repeated: draft id -> why it is a duplicate.
        ranks: draft id -> rank of its passage among all passages, from 1.
        found_within: the last rank that counts as found.
        wanted: queries at most, drawn by a hash of the passages' ids.
        seed: of the draw.

    Returns:
        (one draft for each chosen passage in the order of `asked`, passage id -> `<code>: <detail>`). Codes: no_draft,
        duplicate_query, near_duplicate_query, not_found.
    """
    by_passage: dict[str, list[Draft]] = {passage: [] for passage in asked}
    for draft in drafts:
        by_passage[draft.passage].append(draft)
    best: dict[str, Draft] = {}
    skipped: dict[str, str] = {}
    for passage, written in by_passage.items():
        new = [draft for draft in written if draft.id not in repeated]
        found = [draft for draft in new if ranks[draft.id] <= found_within]
        if found:
            best[passage] = min(found, key=lambda d: (word_share(d.query, d.document), hash_place(d.id, seed)))
        elif new:
            first = min(new, key=lambda d: ranks[d.id])
            skipped[passage] = f"not_found: at best rank {ranks[first.id]} of all passages: {first.query}"
        else:
            skipped[passage] = repeated[written[0].id] if written else "no_draft: none passed the gates"
    kept = chosen_by_hash(best, wanted, seed)
    return [draft for passage, draft in best.items() if passage in kept], skipped


def write_set(
    out: Storage,
    split: str,
    queries: Sequence[Draft],
    skipped: Mapping[str, str],
    passages: Storage,
    documents: int | None,
    seed: int,
) -> None:
    """Write the skipped passages with their reasons (`SPLIT/skipped.parquet`), and the set where there are queries.

    The documents are all passages, which are not written again; `documents` is the most that a smaller corpus of the
    set may have, for a set that is searched again and again while training, and is written.

    Args:
        out: folder of the stage.
        split: name of the folder in it.
        queries: the chosen drafts.
        skipped: passage id -> reason.
        passages: folder of all passages.
        documents: None searches all passages.
        seed: of the draw of the documents.
    """
    rejects = [_reject(passage, reason) for passage, reason in skipped.items()]
    out.write_table(f"{split}/{_SKIPPED}.parquet", pa.Table.from_pylist(rejects, schema=REJECT))
    if not queries:
        return
    corpus: dict[str, tuple[str, str]] = {}
    if documents is not None:
        relevant = {draft.passage for draft in queries}
        every = passages_as_corpus(passages)
        others = chosen_by_hash(every.keys() - relevant, max(0, documents - len(relevant)), seed)
        corpus = {name: texts for name, texts in every.items() if name in relevant | others}
    data = RetrievalSet(
        {f"query:{draft.passage}": draft.query for draft in queries},
        corpus,
        {f"query:{draft.passage}": {draft.passage: 1} for draft in queries},
        {f"query:{draft.passage}": draft.language for draft in queries},
    )
    write_retrieval_set(out / split, data, with_corpus=documents is not None)


def _reject(passage: str, reason: str) -> dict[str, Any]:
    where = {"id": passage, "stage": "synthesize", "source": "", "row": -1}
    return where | {"reason": escaped(reason), "payload": ""}


def outranked(
    vectors: np.ndarray, names: Sequence[str], queries: np.ndarray, own: np.ndarray, passages: Sequence[str]
) -> np.ndarray:
    """(queries,) how many of some passages are nearer to each query than its own passage is.

    Args:
        vectors: (n, dimensions) normalised, of the passages.
        names: their ids.
        queries: (queries, dimensions) normalised.
        own: (queries,) cosine of each query with its own passage.
        passages: id of each query's own passage.
    """
    places = {name: place for place, name in enumerate(names)}
    nearer = queries @ vectors.T > own[:, None] + _ROUNDING
    for row, passage in enumerate(passages):
        if passage in places:
            nearer[row, places[passage]] = False
    counts: np.ndarray = nearer.sum(axis=1)
    return counts


def passage_document(row: Mapping[str, Any]) -> str:
    """A passage's title and text as its queries' document."""
    return document_text(row["title"] or "", row["text"] or "")
