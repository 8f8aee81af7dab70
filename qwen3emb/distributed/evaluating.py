"""The stage `evaluate`: what each stage bought on a retrieval set that none of them has seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa

from qwen3emb.artifact import StageResult
from qwen3emb.data.nearest import NONE
from qwen3emb.distributed.encoding import Encoders, Rerankers
from qwen3emb.distributed.progress import paced
from qwen3emb.errors import UserError
from qwen3emb.evaluate.ranking import (
    Ranking,
    best_weight,
    nearest,
    ranking_metrics,
    read_run,
    reranked,
    run_table,
)
from qwen3emb.evaluate.retrieval import RetrievalSet, read_beir, read_retrieval_set
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.stored import final_model
from qwen3emb.pipeline import StageContext
from qwen3emb.storage import Storage

__all__ = ["evaluate_models"]

_RUN_DEPTH = 100
_RERANKED = "merged+reranker"
_ALONE = "reranker alone"
_SCORES = "runs/rerank_scores.parquet"
_Say = Callable[[str], None]


def evaluate_models(ctx: StageContext, say: _Say) -> StageResult:
    """Rank the documents with every model; write `results.json` and `runs/`.

    Args:
        ctx: the stage.
        say: takes lines of progress.

    Returns:
        `metrics` is metric name -> model -> mean over the queries, four digits.

    Raises:
        UserError: the retrieval set is missing or empty, or a model is missing.
    """
    cfg = ctx.cfg.evaluate
    data = _retrieval_set(ctx)
    say(f"evaluate: {len(data.queries)} queries, {len(data.corpus)} documents from {cfg.dataset}")
    results: dict[str, dict[str, float]] = {}
    for name, rank in _rankings(ctx, data, say).items():
        began = time.monotonic()
        found = ranking_metrics(data, _kept(ctx, data, name, rank), cfg.recall_at)
        results[name] = {metric: round(value, 4) for metric, value in found.items()}
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in results[name].items())
        say(f"evaluate: {name}: {shown} ({time.monotonic() - began:.0f} s)")
    content = {"dataset": cfg.dataset, "queries": len(data.queries), "documents": len(data.corpus)}
    ctx.out.write_json("results.json", content | {"models": results})
    metrics = {m: {name: values[m] for name, values in results.items()} for m in results["merged"]}
    return StageResult(len(data.queries), len(data.queries), {}, metrics)


def _retrieval_set(ctx: StageContext) -> RetrievalSet:
    cfg = ctx.cfg.evaluate
    if cfg.dataset == "heldout":
        where = (ctx.input("corpus") / "heldout").uri
        data = read_retrieval_set(ctx.input("corpus") / "heldout")
        advice = "raise corpus.heldout_share, add Python sources, or set evaluate.dataset to a BEIR folder"
    else:
        where, data = cfg.dataset, read_beir(Storage(cfg.dataset), cfg.split)
        advice = "set evaluate.dataset and evaluate.split to a set with judged queries, or to `heldout`"
    if not data.queries or not data.corpus:
        raise UserError(
            f"{where}: {len(data.queries)} queries and {len(data.corpus)} documents to evaluate on; {advice}"
        )
    return data


def _rankings(ctx: StageContext, data: RetrievalSet, say: _Say) -> dict[str, Callable[[], Ranking]]:
    """What ranks the documents, by the name in the results, in the order of the pipeline."""
    merged, base = ctx.input("merge") / "embedding", str(resolve_model(ctx.cfg.models.base))
    models: dict[str, tuple[str, str | None]] = {
        "base": (base, ctx.cfg.models.end_token),
        "weak": (final_model(ctx.input("weak")).uri, None),
        "supervised": (final_model(ctx.input("supervised")).uri, None),
        "merged": (merged.uri, None),
    }
    rankings: dict[str, Callable[[], Ranking]] = {
        name: partial(_embedded, ctx, data, name, *model, say) for name, model in models.items()
    }
    if ctx.cfg.evaluate.rerank_weight != 1:
        rankings[_ALONE] = partial(_reranked, ctx, data, 1.0, say)
    return rankings | {_RERANKED: partial(_reranked, ctx, data, ctx.cfg.evaluate.rerank_weight, say)}


def _kept(ctx: StageContext, data: RetrievalSet, name: str, rank: Callable[[], Ranking]) -> Ranking:
    """The ranking from `runs/` where a killed run of this stage left it, else a new one."""
    file = f"runs/{name}.parquet"
    if not ctx.out.exists(file):
        ctx.out.write_table(file, run_table(data, rank()))
    return read_run(data, ctx.out.read_table(file))


def _embedded(
    ctx: StageContext, data: RetrievalSet, name: str, model: str, end_token: str | None, say: _Say
) -> Ranking:
    cfg = ctx.cfg.evaluate
    gpus = ctx.cfg.cluster.gpus_per_worker
    with Encoders(model, end_token=end_token, workers=cfg.workers, gpus_per_worker=gpus) as pool:
        queries = pool.encode(
            list(data.queries.values()),
            max_tokens=cfg.max_query_tokens,
            instruction=ctx.cfg.models.instruction,
            progress=paced(say, f"evaluate: {name}: queries embedded"),
        )
        documents = pool.encode(
            data.texts(),
            max_tokens=cfg.max_document_tokens,
            progress=paced(say, f"evaluate: {name}: documents embedded"),
        )
    return nearest(queries, documents, max(_RUN_DEPTH, cfg.rerank_top, *cfg.recall_at))


def _reranked(ctx: StageContext, data: RetrievalSet, weight: float | None, say: _Say) -> Ranking:
    """The top of the merged model's ranking, re-ordered with the merged reranker's scores."""
    first = read_run(data, ctx.out.read_table("runs/merged.parquet"))
    if not ctx.out.exists(_SCORES):
        found = _scores(ctx, data, first, ctx.cfg.evaluate.rerank_top, say)
        ctx.out.write_table(_SCORES, pa.table({"query_id": list(data.queries), "scores": [s.tolist() for s in found]}))
    scores = [np.array(s, dtype=np.float32) for s in ctx.out.read_table(_SCORES)["scores"].to_pylist()]
    if weight is None:
        weight = _dev_weight(ctx, say)
    return reranked(first, scores, weight)


def _dev_weight(ctx: StageContext, say: _Say) -> float:
    """The reranker's share that is best on the dev set.

    Raises:
        UserError: the corpus stage made no dev set.
    """
    dev = read_retrieval_set(ctx.input("corpus") / "dev")
    if not dev.queries:
        raise UserError("evaluate.rerank_weight is null, but there is no dev set to choose it on; set a number")
    first = _embedded(ctx, dev, "dev", (ctx.input("merge") / "embedding").uri, None, say)
    weight = best_weight(dev, first, _scores(ctx, dev, first, ctx.cfg.evaluate.rerank_dev_top, say))
    say(f"evaluate: the reranker's share that is best on {len(dev.queries)} dev queries: {weight}")
    ctx.out.write_json("rerank_weight.json", {"rerank_weight": weight, "chosen_on": "dev"})
    return weight


def _scores(ctx: StageContext, data: RetrievalSet, first: Ranking, top: int, say: _Say) -> list[np.ndarray]:
    """The merged reranker's probabilities of each query's `top` documents."""
    cfg = ctx.cfg.evaluate
    texts = data.texts()
    tops = [[texts[row] for row in rows if row != NONE] for rows in first.rows[:, :top].tolist()]
    gpus = ctx.cfg.cluster.gpus_per_worker
    with Rerankers((ctx.input("merge") / "reranker").uri, workers=cfg.workers, gpus_per_worker=gpus) as pool:
        return pool.score(
            list(data.queries.values()),
            tops,
            max_tokens=cfg.rerank_max_tokens,
            max_query_tokens=cfg.max_query_tokens,
            instruction=ctx.cfg.models.instruction,
            progress=paced(say, f"evaluate: {_RERANKED}: queries reranked"),
        )
