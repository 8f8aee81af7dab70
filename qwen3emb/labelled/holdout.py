"""Queries of a labelled set that are held out of training: their draw, and the retrieval sets that they become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.draws import chosen_by_hash, unit_draw
from qwen3emb.labelled.row import LabelledRow
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import RetrievalSet

__all__ = ["SPLITS", "Split", "drawn_queries", "drawn_set", "without_drawn"]

Split = Literal["heldout", "dev"]
SPLITS: tuple[Split, ...] = ("heldout", "dev")


def drawn_queries(rows: Sequence[LabelledRow], cfg: LabelledDatasetConfig, seed: int) -> dict[Split, set[str]]:
    """Split -> `content_hash` of the queries that it gets; beyond a split's cap queries stay in training.

    The draw depends on the seed and the query's content only: a query of two sets with equal shares falls to one split.
    """
    if not cfg.heldout_share + cfg.dev_share:
        return {split: set() for split in SPLITS}
    draws = {name: unit_draw(seed, "labelled", name) for name in {content_hash(row.query) for row in rows}}
    heldout = {name for name, draw in draws.items() if draw < cfg.heldout_share}
    dev = {name for name, draw in draws.items() if draw < cfg.heldout_share + cfg.dev_share} - heldout
    return {
        "heldout": chosen_by_hash(heldout, cfg.max_heldout_queries, seed),
        "dev": chosen_by_hash(dev, cfg.max_dev_queries, seed),
    }


def without_drawn(
    rows: Sequence[LabelledRow], drawn: dict[Split, set[str]]
) -> tuple[list[LabelledRow], dict[str, int]]:
    """The rows of the queries that stay in training, and the numbers of the others by reason."""
    left: list[LabelledRow] = []
    counts = {f"{split}_query": 0 for split in SPLITS}
    for row in rows:
        split = next((split for split in SPLITS if content_hash(row.query) in drawn[split]), None)
        if split is None:
            left.append(row)
        else:
            counts[f"{split}_query"] += 1
    return left, {reason: count for reason, count in counts.items() if count}


def drawn_set(
    rows: Sequence[LabelledRow], queries: set[str], documents: Iterable[str], languages: Sequence[str]
) -> RetrievalSet:
    """The retrieval set of some queries: all their positives are relevant, everything else is searched as well.

    Args:
        rows: all rows of the set.
        queries: `content_hash` of the set's queries.
        documents: texts to search in besides the documents of the queries themselves.
        languages: of the set; a single one is that of its queries.
    """
    texts: dict[str, str] = {}
    positives: dict[str, dict[str, str]] = {}
    for row in rows:
        query = content_hash(row.query)
        if query in queries:
            texts.setdefault(query, row.query)
            found = positives.setdefault(query, {})
            for text in (row.positive, *row.others):
                found.setdefault(content_hash(text), text)
    corpus: dict[str, tuple[str, str]] = {}
    own = (text for found in positives.values() for text in found.values())
    for text in (*own, *documents):
        corpus.setdefault(content_hash(text), ("", text))
    return RetrievalSet(
        {f"query:{name}": text for name, text in texts.items()},  # other ids than documents: evaluators drop equal ones
        corpus,
        {f"query:{name}": dict.fromkeys(found, 1) for name, found in positives.items()},
        {f"query:{name}": languages[0] for name in texts} if len(languages) == 1 else {},
    )
