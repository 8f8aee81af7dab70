"""The stage `evaluate`: the model of every stage on a retrieval set that none of them was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3emb.config.datasets import DOCSTRINGS, dataset_of
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.records import PAIR, TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.nearest import NONE
from qwen3emb.encoding.pool import Encoders, Rerankers
from qwen3emb.evaluation.by_language import Query, by_language, few_rows_line, trained_on
from qwen3emb.evaluation.ranking import (
    Ranking,
    nearest,
    ranking_metrics,
    ranking_per_query,
    read_run,
    reranked,
    run_table,
)
from qwen3emb.evaluation.rerank_weight import chosen_weight
from qwen3emb.evaluation.sizes import FULL, Size, size_rankings, size_rows, sizes_of
from qwen3emb.metrics.retrieval import own_documents
from qwen3emb.metrics.verdict import compare
from qwen3emb.model.contract import CONTRACT_FILE, Contract
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.stored import final_model
from qwen3emb.text.evaluation_sets import NO_SETS, SYNTHETIC_QUERIES, EvaluationSet, evaluation_sets, first_set
from qwen3emb.text.instructions import instructions
from qwen3emb.text.retrieval_set import RetrievalSet, check_retrieval_set, named_set
from qwen3emb.text.templates import TextLimits

__all__ = ["PER_QUERY", "evaluate_models"]

PER_QUERY = "per_query.json"
"""model -> query id -> nDCG@10."""

_RUN_DEPTH = 100
_RERANKED = "merged+reranker"
_ALONE = "reranker alone"
_WEIGHT = "rerank_weight.json"
_SCORES = "runs/rerank_scores.parquet"
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
    with _Pools(ctx.cfg.evaluate.workers, ctx.cfg.cluster.gpus_per_worker) as pools:
        content, per_query = _evaluated(_Evaluation(ctx, main, ctx.out, pools, say))
        others: dict[str, Any] = {}
        for other in further:
            place = ctx.out / f"sets/{other.name}"
            others[other.name], _ = _evaluated(_Evaluation(ctx, other, place, pools, say))
    content["languages"] = _languages(ctx, main.data, per_query, say)
    if ctx.cfg.evaluate.rerank_weight is None and ctx.out.exists(_WEIGHT):
        content["rerank_weight"] = ctx.out.read_json(_WEIGHT)
    ctx.out.write_json("results.json", content | ({"sets": others} if others else {}))
    if "verdict" in content:
        say(content["verdict"]["line"])
    results, count = content["models"], content["queries"]
    metrics = {metric: {name: values[metric] for name, values in results.items()} for metric in results["merged"]}
    return StageResult(count, count, {}, metrics)


@dataclass(frozen=True)
class _Set:
    """A set that models are compared on: `name` is "" for a BEIR folder, `instruction` that of its queries."""

    name: str
    data: RetrievalSet
    instruction: str
    synthetic: bool = False


def _sets(ctx: StageContext[RunConfig]) -> list[_Set]:
    """The sets to evaluate on, the main one first."""
    if ctx.cfg.evaluate.dataset != "heldout":
        return [_Set("", named_set(ctx.cfg.evaluate), ctx.cfg.models.instruction)]
    return [_read(ctx, found) for found in evaluation_sets(ctx.inputs, "heldout")]


def _read(ctx: StageContext[RunConfig], found: EvaluationSet) -> _Set:
    data = found.read()
    check_retrieval_set(data, found.folder, "qrels")
    return _Set(found.name, data, instructions(ctx.cfg, [found.name])[found.name], found.synthetic)


def _evaluated(e: _Evaluation) -> tuple[dict[str, Any], _PerQuery]:
    """(what `results.json` says of a set, model -> query -> metrics); writes its `per_query.json` and `runs/`."""
    cfg, data, say, name_of_set = e.ctx.cfg.evaluate, e.set.data, e.say, e.set.name or e.ctx.cfg.evaluate.dataset
    sizes, dimensions = _sizes(e.ctx)
    kind = f" ({SYNTHETIC_QUERIES})" if e.set.synthetic else ""
    say(f"evaluate: {len(data.queries)} queries, {len(data.corpus)} documents from {name_of_set}{kind}")
    own_count = sum(map(len, own_documents(data)))
    if own_count:
        say(f"evaluate: {own_count} queries are documents too; a query's own document does not count")
    for note in data.notes:
        say(f"evaluate: {note}")
    results: dict[str, dict[str, float]] = {}
    per_query: _PerQuery = {}
    for name, rank in _rankings(e).items():
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


def _sizes(ctx: StageContext[RunConfig]) -> tuple[list[Size], int]:
    """The sizes of vectors to evaluate, and the merged model's dimensions."""
    contract = Contract(**(ctx.inputs["merge"] / "embedding").read_json(CONTRACT_FILE))
    return sizes_of(ctx.cfg.evaluate.vectors, contract.dimensions), contract.dimensions


def _size_figures(e: _Evaluation, size: Size) -> dict[str, float]:
    """Query -> nDCG@10 of the ranking that `_merged` wrote."""
    data = e.set.data
    ranking = read_run(data, e.out.read_table(_size_file(size)))
    return {query: row["ndcg@10"] for query, row in ranking_per_query(data, ranking, [10]).items()}


def _size_file(size: Size) -> str:
    return f"sizes/{size.name}.parquet"


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


class _Pools:
    """The pools of Ray actors of an evaluation: started at first use, then shared by all models."""

    def __init__(self, workers: int, gpus_per_worker: int) -> None:
        self._options: dict[str, Any] = {"workers": workers, "gpus_per_worker": gpus_per_worker}
        self._encoders: Encoders | None = None
        self._rerankers: Rerankers | None = None

    def encoders(self, model: str, end_token: str | None) -> Encoders:
        """Actors that hold this embedding model."""
        if self._encoders is None:
            self._encoders = Encoders(model, end_token=end_token, **self._options)
        else:
            self._encoders.use(model, end_token)
        return self._encoders

    def rerankers(self, model: str) -> Rerankers:
        """Actors that hold the reranker, the only one of an evaluation."""
        self._rerankers = self._rerankers or Rerankers(model, **self._options)
        return self._rerankers

    def __enter__(self) -> _Pools:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._encoders, self._rerankers):
            if pool is not None:
                pool.close()


@dataclass(frozen=True)
class _Evaluation:
    """Context, retrieval set, its folder, actors and progress, which all rankings of a set share."""

    ctx: StageContext[RunConfig]
    set: _Set
    out: Storage
    pools: _Pools
    say: _Say


def _rankings(e: _Evaluation) -> dict[str, Callable[[], Ranking]]:
    """Name in the results -> function that ranks the documents, in the order of the pipeline."""
    cfg = e.ctx.cfg
    models: dict[str, tuple[str, str | None]] = {}
    for name in cfg.evaluate.compare:
        stage = "distill" if name == "distilled" else name
        if name == "base":
            models[name] = str(resolve_model(cfg.models.base)), cfg.models.end_token
        elif stage in e.ctx.inputs:
            models[name] = final_model(e.ctx.inputs[stage]).uri, None
    rankings: dict[str, Callable[[], Ranking]] = {
        name: partial(_embedded, e, e.set, name, *model) for name, model in models.items()
    }
    rankings["merged"] = partial(_merged, e)
    if "reranker" not in e.ctx.inputs:
        return rankings
    if cfg.evaluate.rerank_weight != 1:
        rankings[_ALONE] = partial(_reranked, e, 1.0)
    return rankings | {_RERANKED: partial(_reranked, e, cfg.evaluate.rerank_weight)}


def _kept_ranking(out: Storage, data: RetrievalSet, name: str, rank: Callable[[], Ranking]) -> Ranking:
    """The ranking from `runs/` if an interrupted run of this stage has written it, else a new one."""
    file = f"runs/{name}.parquet"
    if not out.exists(file):
        out.write_table(file, run_table(data, rank()))
    return read_run(data, out.read_table(file))


def _embedded(e: _Evaluation, chosen: _Set, name: str, model: str, end_token: str | None) -> Ranking:
    return _ranked(e, chosen.data, *_vectors(e, chosen, name, model, end_token))


def _merged(e: _Evaluation) -> Ranking:
    """The merged model's ranking; before it is kept, those of its smaller vectors are written."""
    data = e.set.data
    queries, documents = _vectors(e, e.set, "merged", (e.ctx.inputs["merge"] / "embedding").uri, None)
    own, rescore = own_documents(data), e.ctx.cfg.evaluate.rescore
    for size, ranking in size_rankings(_sizes(e.ctx)[0], queries, documents, rescore, own):
        e.out.write_table(_size_file(size), run_table(data, ranking))
    return _ranked(e, data, queries, documents)


def _ranked(e: _Evaluation, data: RetrievalSet, queries: np.ndarray, documents: np.ndarray) -> Ranking:
    cfg = e.ctx.cfg.evaluate
    return nearest(queries, documents, max(_RUN_DEPTH, cfg.rerank_top, *cfg.recall_at), own_documents(data))


def _vectors(
    e: _Evaluation, chosen: _Set, name: str, model: str, end_token: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a set's queries and of its documents."""
    data = chosen.data
    pool, limits = e.pools.encoders(model, end_token), TextLimits.of(e.ctx.cfg.evaluate)
    queries = pool.encode(
        list(data.queries.values()),
        max_tokens=limits.query,
        instruction=chosen.instruction,
        progress=paced(e.say, f"evaluate: {name}: queries embedded"),
    )
    documents = pool.encode(
        data.texts(),
        max_tokens=limits.document,
        progress=paced(e.say, f"evaluate: {name}: documents embedded"),
    )
    return queries, documents


def _reranked(e: _Evaluation, weight: float | None) -> Ranking:
    """The top of the merged model's ranking, re-ordered with the merged reranker's scores."""
    out, data = e.out, e.set.data
    first = read_run(data, out.read_table("runs/merged.parquet"))
    if not out.exists(_SCORES):
        probabilities = _scores(e, e.set, first, e.ctx.cfg.evaluate.rerank_top)
        out.write_table(
            _SCORES, pa.table({"query_id": list(data.queries), "scores": [s.tolist() for s in probabilities]})
        )
    scores = [np.array(s, dtype=np.float32) for s in out.read_table(_SCORES)["scores"].to_pylist()]
    return reranked(first, scores, _dev_weight(e) if weight is None else weight)


def _dev_weight(e: _Evaluation) -> float:
    """The reranker's share that `chosen_weight` chooses on the main dev set, once for all sets; 0 without a dev set."""
    if e.ctx.out.exists(_WEIGHT):
        return float(e.ctx.out.read_json(_WEIGHT)["rerank_weight"])
    found = first_set(e.ctx.inputs, "dev")
    if found is None:
        e.say("evaluate: evaluate.rerank_weight is null, but there is no dev set to choose it on: the share is 0")
        return 0.0
    dev = _read(e.ctx, found)
    first = _embedded(e, dev, "dev", (e.ctx.inputs["merge"] / "embedding").uri, None)
    choice = chosen_weight(dev.data, first, _scores(e, dev, first, e.ctx.cfg.evaluate.rerank_dev_top))
    gain = f"nDCG@10 {choice.gain:+.4f}, 95 % of {choice.low:+.4f} to {choice.high:+.4f} over all shares"
    e.say(
        f"evaluate: the reranker's share is {choice.weight}: of ten above none, {choice.best} is best on "
        f"{choice.queries} dev queries ({gain}){'' if choice.weight else ', not clearly better than none'}"
    )
    e.ctx.out.write_json(_WEIGHT, {"rerank_weight": choice.weight, "chosen_on": "dev", **asdict(choice)})
    return choice.weight


def _scores(e: _Evaluation, chosen: _Set, first: Ranking, top: int) -> list[np.ndarray]:
    """For each query the merged reranker's probabilities of its first `top` documents, (top,) float32."""
    cfg, data = e.ctx.cfg.evaluate, chosen.data
    texts = data.texts()
    tops = [[texts[row] for row in rows if row != NONE] for rows in first.rows[:, :top].tolist()]
    return e.pools.rerankers((e.ctx.inputs["merge"] / "reranker").uri).score(
        list(data.queries.values()),
        tops,
        max_tokens=cfg.rerank_max_tokens,
        max_query_tokens=TextLimits.of(cfg).query,
        instruction=chosen.instruction,
        progress=paced(e.say, f"evaluate: {_RERANKED}: queries reranked"),
    )
