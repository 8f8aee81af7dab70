"""Mined negatives as training rows, and the pairs that give none as rejects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qwen3emb.mining.rules import MinePair, MiningPlan, Negatives
from qwen3emb.text.false_negatives import Answers, answers_of, true_negatives

__all__ = ["settle_negatives", "training_rows"]


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
        negatives = found[pair.origin, query]
        if negatives is None:
            rejects.append(_reject(pair, score))
            continue
        row = {"id": pair.id, "query": pair.query, "positive": pair.document, "origin": pair.origin}
        texts = [work.documents[n] for n in negatives.rows]
        scores = {"positive_score": score, "negative_scores": list(negatives.scores), "grade": None}
        rows.append({**row, "negatives": texts, **scores})
    return rows, rejects


def _reject(pair: MinePair, score: float) -> dict[str, Any]:
    payload = json.dumps({"query": pair.query, "positive": pair.document, "score": score}, ensure_ascii=False)
    where = {"id": pair.id, "stage": "mine", "source": pair.origin, "row": -1}
    return where | {"reason": "positive_below_min", "payload": payload}


def settle_negatives(rows: Sequence[dict[str, Any]], answers: Answers, searched: Collection[str]) -> Counter[str]:
    """Take out of rows the negatives that are none; how many, by `false_negatives.FALSE`.

    Args:
        rows: with `query`, `positive`, `negatives`, `negative_scores`, `origin`; changed in place.
        answers: of the queries of the origins `searched`, over all of these.
        searched: origins whose positives answer the query in all of them; another origin's only in itself.
    """
    own: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row["origin"] not in searched:
            own.setdefault(row["origin"], []).append((row["query"], row["positive"]))
    by_origin = {origin: answers_of(pairs) for origin, pairs in own.items()}
    total = Counter[str]()
    for row in rows:
        kept, left_out = true_negatives(row["query"], row["negatives"], by_origin.get(row["origin"], answers))
        if left_out:
            total += left_out
            row["negatives"] = [row["negatives"][place] for place in kept]
            row["negative_scores"] = [row["negative_scores"][place] for place in kept if row["negative_scores"]]
    return total
