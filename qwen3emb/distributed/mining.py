"""The stage `mine`: hard negatives for labelled and filtered synthetic pairs (RECIPE section 4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from qwen3emb.artifact import StageResult
from qwen3emb.config import RunConfig
from qwen3emb.data.catalogue import chosen_sets
from qwen3emb.data.dedup import content_hash
from qwen3emb.data.mining import MinePair, MinePlan, Negatives, Search, choose, plan
from qwen3emb.data.synthetic import origin_of
from qwen3emb.distributed.encoding import Encoders
from qwen3emb.distributed.progress import paced
from qwen3emb.distributed.veto import judged_rules, veto
from qwen3emb.errors import UserError
from qwen3emb.evaluate.index import document_text
from qwen3emb.model.stored import scoring_model
from qwen3emb.pipeline import StageContext, asked_for
from qwen3emb.records import PAIR, PASSAGE, REJECT, TRAINING_ROW
from qwen3emb.storage import Storage

__all__ = ["mine_negatives"]

_BLOCK = 512
_SHARD = 50_000
_LABELLED, _SYNTHETIC = "labelled", origin_of("retrieval")
_Say = Callable[[str], None]


@dataclass(frozen=True)
class _Vectors:
    """(queries, D) and (documents, D) float32 unit vectors of a plan's texts."""

    queries: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class _Given:
    """What there is to mine.

    Attributes:
        pairs: queries with their positives.
        corpora: origin -> texts that its queries are mined from.
        own: id of a labelled set's row -> the negatives that the set has itself.
        passed: training rows that are not mined.
    """

    pairs: list[MinePair]
    corpora: dict[str, list[str]]
    own: dict[str, list[str]]
    passed: list[dict[str, Any]]


def mine_negatives(ctx: StageContext, say: _Say) -> StageResult:
    """Mine each query's negatives from the corpus of its origin; write `rows/` and `rejects/`.

    Labelled queries are mined from the documents of all labelled pairs, synthetic ones from all passages, those of a
    labelled set from the set's documents, behind the negatives that the set has itself. Classification, STS and bitext
    rows pass through, labelled and synthetic ones.

    Args:
        ctx: the stage.
        say: takes lines of progress.

    Raises:
        UserError: there are no pairs, or the scoring model is missing.
    """
    given = _gathered(ctx)
    work = plan(given.pairs, given.corpora)
    vectors = _embed(work, ctx.cfg, ctx.input("weak"), say)
    found: dict[tuple[str, int], Negatives | None] = {}
    for origin, search in work.searches.items():
        mined = _search(search, vectors, ctx.cfg, paced(say, f"mine: {origin} queries searched"))
        found |= {(origin, query): negatives for query, negatives in zip(search.queries, mined, strict=True)}
    found, vetoed = veto(found, work, ctx.cfg, say)
    rows, rejects = _rows(given.pairs, work, vectors, found)
    for row in rows:
        row["negatives"], row["negative_scores"] = _after(given.own.get(row["id"], []), row, ctx.cfg.mine.negatives)
    for name, found_rows, schema in (("rows", [*rows, *given.passed], TRAINING_ROW), ("rejects", rejects, REJECT)):
        ctx.out.delete(name)  # of a run that was killed
        ctx.out.write_parts(name, pa.Table.from_pylist(found_rows, schema=schema), _SHARD)
    metrics = _figures(rows, ctx.cfg.mine.negatives) | ({} if vetoed is None else {"vetoed": vetoed})
    if metrics["short"]:
        say(f"mine: {metrics['short']} of {len(rows)} rows have fewer than {ctx.cfg.mine.negatives} negatives")
    rejected = dict(Counter(r["reason"] for r in rejects))
    others = len(given.passed)
    return StageResult(len(given.pairs) + others, len(rows) + others, rejected, metrics)


def _gathered(ctx: StageContext) -> _Given:
    """What the stages before have left."""
    corpus, filtered = ctx.input("corpus"), ctx.input("filter")
    synthetic = filtered.read_table("pairs", PAIR).to_pylist()
    sets = _rows_of_sets(ctx) + [_passed(pair) for pair in synthetic if pair["origin"] != _SYNTHETIC]
    names = {n for n, one in chosen_sets(ctx.cfg.labelled).items() if one.mine and one.task == "retrieval"}
    mined_sets = [row for row in sets if row["origin"] in names]
    passed = [row for row in sets if row["origin"] not in names]
    pairs = _pairs(corpus.read_table("pairs", PAIR).to_pylist(), _LABELLED)
    pairs += _pairs([pair for pair in synthetic if pair["origin"] == _SYNTHETIC], _SYNTHETIC)
    pairs += [MinePair(row["id"], row["query"], row["positive"], row["origin"]) for row in mined_sets]
    if not pairs and not sets:
        raise UserError(
            f"{corpus.uri}/pairs and {filtered.uri}/pairs hold no pair to mine for; add sources, or lower "
            "filter.threshold"
        )
    passages = corpus.read_table("passages", PASSAGE).select(["title", "text"]).to_pylist()
    labelled = [p.document for p in pairs if p.origin == _LABELLED]
    texts = [document_text(p["title"] or "", p["text"]) for p in passages]  # as in the synthetic pairs
    corpora = {_LABELLED: labelled, _SYNTHETIC: texts}
    for row in mined_sets:
        corpora.setdefault(row["origin"], []).extend([row["positive"], *row["negatives"]])
    own = {row["id"]: row["negatives"] for row in mined_sets}
    return _Given(pairs, corpora, own, passed)


def _rows_of_sets(ctx: StageContext) -> list[dict[str, Any]]:
    """The rows of the stage `labelled`, where the run has sets."""
    if not asked_for(ctx.cfg, "labelled"):
        return []
    rows: list[dict[str, Any]] = ctx.input("labelled").read_table("rows", TRAINING_ROW).to_pylist()
    return rows


def _after(own: Sequence[str], row: dict[str, Any], wanted: int) -> tuple[list[str], list[float | None]]:
    """A set's own negatives, then mined ones up to `wanted` in all; (texts, scores, None for the set's own)."""
    known = {content_hash(text) for text in own}
    mined = [
        (text, score)
        for text, score in zip(row["negatives"], row["negative_scores"], strict=True)
        if content_hash(text) not in known
    ][: max(0, wanted - len(own))]
    return [*own, *(text for text, _ in mined)], [*[None] * len(own), *(score for _, score in mined)]


def _pairs(rows: Sequence[dict[str, Any]], origin: str) -> list[MinePair]:
    return [MinePair(row["id"], row["query"], row["document"], origin) for row in rows]


def _passed(pair: dict[str, Any]) -> dict[str, Any]:
    """A synthetic pair of a task without mining, as a training row."""
    negatives = pair.get("negatives") or []
    return {
        "id": pair["id"],
        "query": pair["query"],
        "positive": pair["document"],
        "negatives": negatives,
        "origin": pair["origin"],
        "positive_score": pair["score"],
        "negative_scores": [None] * len(negatives),
        "grade": pair.get("grade"),
    }


def _embed(work: MinePlan, cfg: RunConfig, weak: Storage, say: _Say) -> _Vectors:
    """Each distinct text once."""
    model, end_token = scoring_model(cfg.mine.model, weak, cfg.models.end_token)
    say(f"mine: embedding {len(work.queries)} queries and {len(work.documents)} documents with {model}")
    gpus = cfg.cluster.gpus_per_worker
    with Encoders(model, end_token=end_token, workers=cfg.mine.workers, gpus_per_worker=gpus) as pool:
        encode = partial(pool.encode, max_tokens=cfg.mine.max_tokens)
        ask = cfg.models.instruction
        queries = encode(work.queries, instruction=ask, progress=paced(say, "mine: queries embedded"))
        documents = encode(work.documents, progress=paced(say, "mine: documents embedded"))
    return _Vectors(queries, documents)


def _search(
    search: Search, vectors: _Vectors, cfg: RunConfig, progress: Callable[[int, int], None]
) -> list[Negatives | None]:
    """The search in blocks of queries, as Ray tasks that share the corpus; in the order of the queries."""
    if not search.queries:
        return []
    corpus = ray.put(vectors.documents[search.corpus])
    task, rules = ray.remote(choose), judged_rules(cfg.mine)
    pending = []
    for low in range(0, len(search.queries), _BLOCK):
        part = slice(low, low + _BLOCK)
        queries = vectors.queries[search.queries[part]]
        scores = [
            vectors.documents[list(rows)] @ query for query, rows in zip(queries, search.positives[part], strict=True)
        ]
        pending.append(task.remote(queries, corpus, scores, search.excluded[part], rules))
    found: list[Negatives | None] = []
    for block in pending:
        mined: list[Negatives | None] = ray.get(block)
        found.extend(mined)
        progress(len(found), len(search.queries))
    return found


def _rows(
    pairs: Sequence[MinePair],
    work: MinePlan,
    vectors: _Vectors,
    found: dict[tuple[str, int], Negatives | None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, rejects), one of them for each pair, in the order of the pairs."""
    rows, rejects = [], []
    for pair, (query, document) in zip(pairs, work.pairs, strict=True):
        score = float(vectors.queries[query] @ vectors.documents[document])
        negatives = found[pair.origin, query]
        if negatives is None:
            rejects.append(_reject(pair, score))
            continue
        corpus = work.searches[pair.origin].corpus
        row = {"id": pair.id, "query": pair.query, "positive": pair.document, "origin": pair.origin}
        texts = [work.documents[corpus[n]] for n in negatives.rows]
        scores = {"positive_score": score, "negative_scores": list(negatives.scores), "grade": None}
        rows.append({**row, "negatives": texts, **scores})
    return rows, rejects


def _reject(pair: MinePair, score: float) -> dict[str, Any]:
    payload = json.dumps({"query": pair.query, "positive": pair.document, "score": score}, ensure_ascii=False)
    where = {"id": pair.id, "stage": "mine", "source": pair.origin, "row": -1}
    return where | {"reason": "positive_below_min", "payload": payload}


def _figures(rows: Sequence[dict[str, Any]], wanted: int) -> dict[str, Any]:
    """Figures of the training rows; `short` counts those with fewer than the `wanted` negatives."""
    hard = [s for row in rows for s in row["negative_scores"] if s is not None]
    return {
        "rows": dict(Counter(row["origin"] for row in rows)),
        "negatives": sum(len(row["negatives"]) for row in rows),
        "short": sum(len(row["negatives"]) < wanted for row in rows),
        "missing_negatives": sum(max(0, wanted - len(row["negatives"])) for row in rows),
        "mean_positive_score": round(float(np.mean([r["positive_score"] for r in rows])), 4) if rows else None,
        "mean_negative_score": round(float(np.mean(hard)), 4) if hard else None,
    }
