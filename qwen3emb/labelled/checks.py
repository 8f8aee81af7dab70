"""Labelled rows that must not be trained on: repeated ones, and those that are like evaluation texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3emb.config.labelled import LabelledConfig
from qwen3emb.core.rejects import Reject, escaped
from qwen3emb.labelled.row import STAGE, LabelledRow
from qwen3emb.text.decontamination import EvaluationNgrams, near_matches
from qwen3emb.text.identity import content_hash
from qwen3emb.text.near_duplicates import minhashes

__all__ = ["Evaluation", "decontaminated", "evaluation_of", "without_duplicates"]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation texts, indexed, which no training row may resemble.

    Attributes:
        signatures: (n, places) MinHash of the held-out and dev queries and documents; n is 0 where there are none.
        names: name of each text.
        threshold: share of equal places from which on a text is a near duplicate.
        ngrams: index of their word n-grams.
    """

    signatures: NDArray[np.uint64]
    names: list[str]
    threshold: float
    ngrams: EvaluationNgrams


def evaluation_of(texts: Mapping[str, str], cfg: LabelledConfig) -> Evaluation:
    """Index evaluation texts by name (`evaluation_sets.evaluation_texts`; there may be none)."""
    names, contents = list(texts), list(texts.values())
    ngrams = EvaluationNgrams(names, contents, cfg.decontaminate_ngrams)
    return Evaluation(minhashes(contents), names, cfg.decontaminate, ngrams)


def without_duplicates(rows: Sequence[LabelledRow], rejects: list[Reject]) -> list[LabelledRow]:
    """One row for each query and positive; the first one stays, the others are added to `rejects`."""
    seen: dict[tuple[str, str], str] = {}
    kept = []
    for row in rows:
        first = seen.setdefault((content_hash(row.query), content_hash(row.positive)), row.id)
        if first == row.id:
            kept.append(row)
        else:
            rejects.append(_reject(row, f"duplicate: of {first}"))
    return kept


def decontaminated(rows: Sequence[LabelledRow], evaluation: Evaluation, rejects: list[Reject]) -> list[LabelledRow]:
    """The rows whose query and positive are no near duplicates of evaluation texts, and contain none of them.

    The others are added to `rejects`.
    """
    hits = np.full(len(rows), -1)
    for texts in ([row.query for row in rows], [row.positive for row in rows]):
        matches = near_matches(minhashes(texts), evaluation.signatures, evaluation.threshold)
        hits = np.where(hits < 0, matches, hits)
    clean = []
    for row, hit in zip(rows, hits.tolist(), strict=True):
        name = evaluation.names[hit] if hit >= 0 else None
        name = name or evaluation.ngrams.held(row.query) or evaluation.ngrams.held(row.positive)
        if name:
            rejects.append(_reject(row, f"heldout_overlap: {name}"))
        else:
            clean.append(row)
    return clean


def _reject(row: LabelledRow, reason: str) -> Reject:
    payload = escaped(f"{row.query}\n\n{row.positive}")
    return Reject(row.id, STAGE, escaped(reason), row.id.partition("/")[0], -1, payload)
