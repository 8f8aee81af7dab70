"""Mined negatives as training rows, and the pairs that give none as rejects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3emb.data.mining import MinePair, MinePlan, Negatives

__all__ = ["training_rows"]


def training_rows(
    pairs: Sequence[MinePair],
    work: MinePlan,
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
