"""The stage `evaluate`: the model of every stage on a retrieval set that none of them was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qwen3emb.config.datasets import DOCSTRINGS, dataset_of
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.records import PAIR, TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.by_language import Query, by_language, few_rows_line, trained_on
from qwen3emb.evaluation.model_rankings import (
    WEIGHT,
    EvaluatedSet,
    Evaluation,
    Pools,
    model_rankings,
    read_set,
    size_file,
    vector_sizes,
)
from qwen3emb.evaluation.ranking import (
    Ranking,
    ranking_metrics,
    ranking_per_query,
    read_run,
    run_table,
)
from qwen3emb.evaluation.sizes import FULL, Size, size_rows
from qwen3emb.metrics.retrieval import own_documents
from qwen3emb.metrics.verdict import compare
from qwen3emb.text.evaluation_sets import NO_SETS, SYNTHETIC_QUERIES, evaluation_sets
from qwen3emb.text.retrieval_set import RetrievalSet, named_set

__all__ = ["PER_QUERY", "evaluate_models"]

PER_QUERY = "per_query.json"
"""model -> query id -> nDCG@10."""

_QUERY_LANGUAGE = (DOCSTRINGS, dataset_of("retrieval"))  # `language` of other tasks' pairs may be the document's
_Say = Callable[[str], None]
_PerQuery = dict[str, dict[str, dict[str, float]]]


def evaluate_models(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Rank the documents of each held-out set with every model of the run and compute the metrics.

    Writes `results.json` (with the verdict on the last model against the first, and what smaller vectors cost),
    `per_query.json` (nDCG@10 of each query) and the rankings, `runs/` and `sizes/`, of the main set; of further ones
    the same below `sets/NAME/`, their results under "sets" in `results.json`. A run without any set has results without
    models.

    Args:
        ctx: configuration, inputs and output folder of the stage.
        say: takes lines of progress.

    Returns:
        Counts of queries of the main set; `metrics` is metric name -> model -> mean over its queries, rounded to four
        digits.

    Raises:
        UserError: the set that `evaluate.dataset` names is missing or empty, a model is missing, or `evaluate.vectors`
            asks for more dimensions than it has.
    """
    sets = _sets(ctx)
    content: dict[str, Any]
    if not sets:
        say(f"evaluate: {NO_SETS}")
        content = {"dataset": ctx.cfg.evaluate.dataset, "queries": 0, "documents": 0, "models": {}, "note": NO_SETS}
        ctx.out.write_json("results.json", content)
        return StageResult(0, 0, {}, {})
    main, *further = sets
    with Pools(ctx.cfg.evaluate.workers, ctx.cfg.cluster.gpus_per_worker) as pools:
        content, per_query = _evaluated(Evaluation(ctx, main, ctx.out, pools, say))
        others: dict[str, Any] = {}
        for other in further:
            place = ctx.out / f"sets/{other.name}"
            others[other.name], _ = _evaluated(Evaluation(ctx, other, place, pools, say))
    content["languages"] = _languages(ctx, main.data, per_query, say)
    if ctx.cfg.evaluate.rerank_weight is None and ctx.out.exists(WEIGHT):
        content["rerank_weight"] = ctx.out.read_json(WEIGHT)
    ctx.out.write_json("results.json", content | ({"sets": others} if others else {}))
    if "verdict" in content:
        say(content["verdict"]["line"])
    results, count = content["models"], content["queries"]
    metrics = {metric: {name: values[metric] for name, values in results.items()} for metric in results["merged"]}
    return StageResult(count, count, {}, metrics)


def _sets(ctx: StageContext[RunConfig]) -> list[EvaluatedSet]:
    """The sets to evaluate on, the main one first."""
    if ctx.cfg.evaluate.dataset != "heldout":
        return [EvaluatedSet("", named_set(ctx.cfg.evaluate), ctx.cfg.models.instruction)]
    return [read_set(ctx, found) for found in evaluation_sets(ctx.inputs, "heldout")]


def _evaluated(e: Evaluation) -> tuple[dict[str, Any], _PerQuery]:
    """(what `results.json` says of a set, model -> query -> metrics); writes its `per_query.json` and `runs/`."""
    cfg, data, say, name_of_set = e.ctx.cfg.evaluate, e.set.data, e.say, e.set.name or e.ctx.cfg.evaluate.dataset
    sizes, dimensions = vector_sizes(e.ctx)
    kind = f" ({SYNTHETIC_QUERIES})" if e.set.synthetic else ""
    say(f"evaluate: {len(data.queries)} queries, {len(data.corpus)} documents from {name_of_set}{kind}")
    own_count = sum(map(len, own_documents(data)))
    if own_count:
        say(f"evaluate: {own_count} queries are documents too; a query's own document does not count")
    for note in data.notes:
        say(f"evaluate: {note}")
    results: dict[str, dict[str, float]] = {}
    per_query: _PerQuery = {}
    for name, rank in model_rankings(e).items():
        began = time.monotonic()
        ranking = _kept_ranking(e.out, data, name, rank)
        means = ranking_metrics(data, ranking, cfg.recall_at)
        per_query[name] = ranking_per_query(data, ranking, cfg.recall_at)
        results[name] = {metric: round(value, 4) for metric, value in means.items()}
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in results[name].items())
        say(f"evaluate: {name}: {shown} ({time.monotonic() - began:.0f} s)")
    content: dict[str, Any] = {
        "dataset": cfg.dataset,
        "set": e.set.name,
        "synthetic_queries": e.set.synthetic,
        "queries": len(data.queries),
        "documents": len(data.corpus),
        "models": results,
    }
    headline = {model: {name: row["ndcg@10"] for name, row in rows.items()} for model, rows in per_query.items()}
    e.out.write_json(PER_QUERY, headline)
    # What would be served against what one had: the last ranking against the first.
    baseline, *_, model = headline
    verdict = compare("ndcg@10", model, baseline, headline) if model != baseline else None
    if verdict:
        content["verdict"] = verdict.as_json()
    if sizes:
        figures = {size.name: _size_figures(e, size) for size in sizes} | {FULL: headline["merged"]}
        content["sizes"] = size_rows(sizes, figures, dimensions)
    return content, per_query


def _size_figures(e: Evaluation, size: Size) -> dict[str, float]:
    """Query -> nDCG@10 of the ranking that `_merged` wrote."""
    data = e.set.data
    ranking = read_run(data, e.out.read_table(size_file(size)))
    return {query: row["ndcg@10"] for query, row in ranking_per_query(data, ranking, [10]).items()}


def _languages(
    ctx: StageContext[RunConfig], data: RetrievalSet, figures: _PerQuery, say: _Say
) -> dict[str, dict[str, Any]]:
    """The metrics `by_language`; a line of progress names the languages with few training rows."""
    queries = {name: Query(text, data.languages.get(name)) for name, text in data.queries.items()}
    languages = by_language(queries, _training_queries(ctx), figures)
    few = few_rows_line(languages, ctx.cfg.evaluate.few_rows)
    if few:
        say(f"evaluate: {few}")
    return languages


def _training_queries(ctx: StageContext[RunConfig]) -> list[Query]:
    """The queries of the rows that the supervised stage trains on, with the language stated in their pairs."""
    languages: dict[tuple[str, str], str] = {}
    for stage in ("corpus", "filter"):
        if stage in ctx.inputs:
            pairs = ctx.inputs[stage].read_table("pairs", PAIR)
            columns = (pairs[name].to_pylist() for name in ("dataset", "id", "language"))
            languages |= {(o, i): code for o, i, code in zip(*columns, strict=True) if o in _QUERY_LANGUAGE}
    rows = ctx.inputs["mine"].read_table("rows", TRAINING_ROW)
    used = {dataset: trained_on(ctx.cfg, dataset) for dataset in set(rows["dataset"].to_pylist())}
    columns = (rows[name].to_pylist() for name in ("dataset", "id", "query"))
    return [Query(query, languages.get((o, i))) for o, i, query in zip(*columns, strict=True) if used[o]]


def _kept_ranking(out: Storage, data: RetrievalSet, name: str, rank: Callable[[], Ranking]) -> Ranking:
    """The ranking from `runs/` if an interrupted run of this stage has written it, else a new one."""
    file = f"runs/{name}.parquet"
    if not out.exists(file):
        out.write_table(file, run_table(data, rank()))
    return read_run(data, out.read_table(file))
