"""The stage `labelled`: data sets with human labels into training rows, each set a Ray task of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from qwen3emb.artifact import StageResult
from qwen3emb.config_labelled import LabelledConfig, LabelledSetConfig
from qwen3emb.data.card import write_card
from qwen3emb.data.catalogue import chosen_sets
from qwen3emb.data.corpus_files import chosen_by_hash
from qwen3emb.data.decontamination import EvaluationNgrams, evaluation_texts, near_matches
from qwen3emb.data.dedup import minhash
from qwen3emb.data.identity import content_hash
from qwen3emb.data.labelled import STAGE, LabelledRow, read_labelled
from qwen3emb.data.rows import Reject, escaped
from qwen3emb.errors import NotThere, UserError
from qwen3emb.pipeline import StageContext
from qwen3emb.records import REJECT, TRAINING_ROW
from qwen3emb.storage import Storage

__all__ = ["read_sets"]

_SHARD = 50_000
_Say = Callable[[str], None]


@dataclass(frozen=True)
class _Evaluation:
    """MinHash signatures of the held-out queries and documents, where each came from, and their runs of words."""

    signatures: NDArray[np.uint64]
    names: list[str]
    threshold: float
    ngrams: EvaluationNgrams


def read_sets(ctx: StageContext, say: _Say) -> StageResult:
    """Read every configured set into `rows/`, `rejects/` and `card.json` (`card.md` to read).

    Raises:
        UserError: a set that cannot be reached (unless `labelled.skip_missing`) or read, or none has a row.
    """
    cfg, out = ctx.cfg.labelled, ctx.out
    sets = chosen_sets(cfg)
    evaluation = _evaluation(ctx.input("corpus"), cfg)
    for folder in ("rows", "rejects"):
        out.delete(folder)  # of a run that was killed
    task = ray.remote(_one_set)
    shared = ray.put(evaluation)
    pending = {name: task.remote(name, one, ctx.cfg.seed, out.uri, shared) for name, one in sets.items()}
    cards: dict[str, Any] = {}
    for name, result in pending.items():
        card = ray.get(result)
        if "error" in card and not (cfg.skip_missing and card["missing"]):
            raise UserError(card["error"])
        said = card.get("error") or f"{card['rows']} rows, {sum(card['rejected'].values())} rejected"
        say(f"labelled: {name}: {said}")
        cards[name] = card
    write_card(out, "Labelled data sets", cards)
    rejected = Counter[str]()
    for card in cards.values():
        rejected.update(card.get("rejected", {}))
    rows = sum(card.get("rows", 0) for card in cards.values())
    if not rows:
        raise UserError(f"labelled.sets: no set gives a row; see {out.uri}/rejects")
    skipped = [name for name, card in cards.items() if "error" in card]
    metrics = {"rows": {name: card.get("rows", 0) for name, card in cards.items()}, "skipped_sets": skipped}
    return StageResult(rows + sum(rejected.values()), rows, dict(sorted(rejected.items())), metrics)


def _evaluation(corpus: Storage, cfg: LabelledConfig) -> _Evaluation:
    """What no training row may resemble: queries and documents of the held-out and dev sets."""
    texts = evaluation_texts(corpus)
    signatures = np.array([minhash(text) for text in texts.values()], dtype=np.uint64)
    ngrams = EvaluationNgrams(list(texts), list(texts.values()), cfg.decontaminate_ngrams)
    return _Evaluation(signatures.reshape(len(texts), -1), list(texts), cfg.decontaminate, ngrams)


def _one_set(name: str, cfg: LabelledSetConfig, seed: int, uri: str, evaluation: _Evaluation) -> dict[str, Any]:
    """Write one set's rows and rejects; its card, or the sentence that says why it cannot be read.

    Ray keeps only the text of what a task raises, so a user's mistake is returned.
    """
    out = Storage(uri)
    try:
        found = list(read_labelled(name, cfg, seed))
    except UserError as error:
        return {"error": str(error), "missing": isinstance(error, NotThere)}
    rows = [row for row in found if isinstance(row, LabelledRow)]
    rejects = [item for item in found if isinstance(item, Reject)]
    rows = _without_duplicates(rows, rejects)
    rows = _decontaminated(rows, evaluation, rejects)
    kept = rows if cfg.max_rows is None else _sample(rows, cfg.max_rows, seed)
    counts = Counter(reject.code for reject in rejects)
    if len(kept) < len(rows):
        counts["over_max_rows"] = len(rows) - len(kept)
    records = [_record(row, name) for row in kept]
    out.write_parts(f"rows/{name}", pa.Table.from_pylist(records, schema=TRAINING_ROW), _SHARD)
    out.write_parts(f"rejects/{name}", pa.Table.from_pylist([asdict(r) for r in rejects], schema=REJECT), _SHARD)
    about = cfg.model_dump(include={"path", "homepage", "licence", "languages", "task", "instruction"})
    return about | {"rows": len(kept), "rejected": dict(counts), **_lengths(kept)}


def _without_duplicates(rows: Sequence[LabelledRow], rejects: list[Reject]) -> list[LabelledRow]:
    """One row for each query and positive; the first one stays."""
    seen: dict[tuple[str, str], str] = {}
    kept = []
    for row in rows:
        first = seen.setdefault((content_hash(row.query), content_hash(row.positive)), row.id)
        if first == row.id:
            kept.append(row)
        else:
            rejects.append(_reject(row, f"duplicate: of {first}"))
    return kept


def _decontaminated(rows: Sequence[LabelledRow], evaluation: _Evaluation, rejects: list[Reject]) -> list[LabelledRow]:
    """Rows whose query and positive are like nothing that is evaluated on, and hold nothing of it."""
    hits = np.full(len(rows), -1)
    for texts in ([row.query for row in rows], [row.positive for row in rows]):
        signatures = np.array([minhash(text) for text in texts], dtype=np.uint64).reshape(len(texts), -1)
        found = near_matches(signatures, evaluation.signatures, evaluation.threshold)
        hits = np.where(hits < 0, found, hits)
    clean = []
    for row, hit in zip(rows, hits.tolist(), strict=True):
        name = evaluation.names[hit] if hit >= 0 else None
        name = name or evaluation.ngrams.held(row.query) or evaluation.ngrams.held(row.positive)
        if name:
            rejects.append(_reject(row, f"heldout_overlap: {name}"))
        else:
            clean.append(row)
    return clean


def _sample(rows: Sequence[LabelledRow], limit: int, seed: int) -> list[LabelledRow]:
    chosen = chosen_by_hash([row.id for row in rows], limit, seed)
    return [row for row in rows if row.id in chosen]


def _record(row: LabelledRow, name: str) -> dict[str, Any]:
    texts = {"query": row.query, "positive": row.positive, "negatives": list(row.negatives)}
    return {"id": row.id, "origin": name, **texts, "positive_score": None, "negative_scores": [], "grade": row.grade}


def _reject(row: LabelledRow, reason: str) -> Reject:
    return Reject(
        row.id, STAGE, escaped(reason), row.id.partition("/")[0], -1, escaped(f"{row.query}\n\n{row.positive}")
    )


def _lengths(rows: Sequence[LabelledRow]) -> dict[str, Any]:
    """Mean words and negatives, for the data card."""
    if not rows:
        return {}

    def mean(values: Iterator[int]) -> float:
        return round(float(np.mean(list(values))), 1)

    return {
        "query_words": mean(len(row.query.split()) for row in rows),
        "positive_words": mean(len(row.positive.split()) for row in rows),
        "negatives": mean(len(row.negatives) for row in rows),
    }
