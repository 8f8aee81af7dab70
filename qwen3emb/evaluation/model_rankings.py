"""Rankings of a retrieval set by the models of a run, on pools of actors that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3emb.config.run import RunConfig
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.nearest import NONE
from qwen3emb.encoding.pool import Encoders, Rerankers
from qwen3emb.evaluation.ranking import (
    Ranking,
    nearest,
    read_run,
    reranked,
    run_table,
)
from qwen3emb.evaluation.rerank_weight import chosen_weight
from qwen3emb.evaluation.sizes import Size, size_rankings, sizes_of
from qwen3emb.metrics.retrieval import own_documents
from qwen3emb.model.contract import CONTRACT_FILE, Contract
from qwen3emb.model.stored import final_model
from qwen3emb.text.evaluation_sets import EvaluationSet, first_set
from qwen3emb.text.instructions import instructions
from qwen3emb.text.retrieval_set import RetrievalSet, check_retrieval_set
from qwen3emb.text.templates import TextLimits

__all__ = ["WEIGHT", "EvaluatedSet", "Evaluation", "Pools", "model_rankings", "read_set", "size_file", "vector_sizes"]

WEIGHT = "rerank_weight.json"
"""Which share the reranker has, where the dev set decides."""

_RUN_DEPTH = 100
_RERANKED = "merged+reranker"
_ALONE = "reranker alone"
_DEV_RUN = "dev_run.parquet"
_SCORES = "runs/rerank_scores.parquet"
_Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluatedSet:
    """A set that models are compared on: `name` is "" for a BEIR folder, `instruction` that of its queries."""

    name: str
    data: RetrievalSet
    instruction: str
    synthetic: bool = False


def read_set(ctx: StageContext[RunConfig], found: EvaluationSet) -> EvaluatedSet:
    """A set of the run with the instruction of its queries.

    Raises:
        UserError: it is damaged.
    """
    data = found.read()
    check_retrieval_set(data, found.folder, "qrels")
    return EvaluatedSet(found.name, data, instructions(ctx.cfg, [found.name])[found.name], found.synthetic)


def vector_sizes(ctx: StageContext[RunConfig]) -> tuple[list[Size], int]:
    """The sizes of vectors to evaluate, and the merged model's dimensions."""
    contract = Contract(**(ctx.inputs["merge"] / "embedding").read_json(CONTRACT_FILE))
    return sizes_of(ctx.cfg.evaluate.vectors, contract.dimensions), contract.dimensions


def size_file(size: Size) -> str:
    """Name of the ranking by vectors of a size in a set's folder."""
    return f"sizes/{size.name}.parquet"


class Pools:
    """The pool of Ray actors of an evaluation, shared by all models: of encoders or of rerankers, one at a time.

    Two pools at once would each hold workers' GPUs, and the second wait for those of the first for ever.
    """

    def __init__(self, workers: int, gpus_per_worker: int) -> None:
        self._options: dict[str, Any] = {"workers": workers, "gpus_per_worker": gpus_per_worker}
        self._encoders: Encoders | None = None
        self._rerankers: Rerankers | None = None

    def encoders(self, model: str, end_token: str | None) -> Encoders:
        """Actors that hold this embedding model."""
        self._end_rerankers()
        if self._encoders is None:
            self._encoders = Encoders(model, end_token=end_token, **self._options)
        else:
            self._encoders.use(model, end_token)
        return self._encoders

    def rerankers(self, model: str) -> Rerankers:
        """Actors that hold the reranker, the only one of an evaluation."""
        self._end_encoders()
        self._rerankers = self._rerankers or Rerankers(model, **self._options)
        return self._rerankers

    def __enter__(self) -> Pools:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_encoders()
        self._end_rerankers()

    def _end_encoders(self) -> None:
        if self._encoders is not None:
            self._encoders.close()
            self._encoders = None

    def _end_rerankers(self) -> None:
        if self._rerankers is not None:
            self._rerankers.close()
            self._rerankers = None


@dataclass(frozen=True)
class Evaluation:
    """Context, retrieval set, its folder, actors and progress, which all rankings of a set share."""

    ctx: StageContext[RunConfig]
    set: EvaluatedSet
    out: Storage
    pools: Pools
    say: _Say


def model_rankings(e: Evaluation) -> dict[str, Callable[[], Ranking]]:
    """Name in the results -> function that ranks the documents, in the order of the pipeline."""
    cfg = e.ctx.cfg
    models: dict[str, tuple[str, str | None]] = {}
    for name in cfg.evaluate.compare:
        stage = "distill" if name == "distilled" else name
        if name == "base":
            models[name] = cfg.models.base, cfg.models.end_token
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


def _embedded(e: Evaluation, chosen: EvaluatedSet, name: str, model: str, end_token: str | None) -> Ranking:
    return _ranked(e, chosen.data, *_vectors(e, chosen, name, model, end_token))


def _merged(e: Evaluation) -> Ranking:
    """The merged model's ranking; before it is kept, those of its smaller vectors are written."""
    data = e.set.data
    queries, documents = _vectors(e, e.set, "merged", (e.ctx.inputs["merge"] / "embedding").uri, None)
    own, rescore = own_documents(data), e.ctx.cfg.evaluate.rescore
    for size, ranking in size_rankings(vector_sizes(e.ctx)[0], queries, documents, rescore, own):
        e.out.write_table(size_file(size), run_table(data, ranking))
    if "reranker" in e.ctx.inputs and e.ctx.cfg.evaluate.rerank_weight is None and not e.ctx.out.exists(WEIGHT):
        _dev_first(e)  # while the encoders are up
    return _ranked(e, data, queries, documents)


def _ranked(e: Evaluation, data: RetrievalSet, queries: np.ndarray, documents: np.ndarray) -> Ranking:
    cfg = e.ctx.cfg.evaluate
    return nearest(queries, documents, max(_RUN_DEPTH, cfg.rerank_top, *cfg.recall_at), own_documents(data))


def _vectors(
    e: Evaluation, chosen: EvaluatedSet, name: str, model: str, end_token: str | None
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


def _reranked(e: Evaluation, weight: float | None) -> Ranking:
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


def _dev_weight(e: Evaluation) -> float:
    """The reranker's share that `chosen_weight` chooses on the main dev set, once for all sets; 0 without a dev set."""
    if e.ctx.out.exists(WEIGHT):
        return float(e.ctx.out.read_json(WEIGHT)["rerank_weight"])
    found = first_set(e.ctx.inputs, "dev")
    if found is None:
        e.say("evaluate: evaluate.rerank_weight is null, but there is no dev set to choose it on: the share is 0")
        return 0.0
    dev, first = read_set(e.ctx, found), _dev_first(e)
    assert first is not None
    choice = chosen_weight(dev.data, first, _scores(e, dev, first, e.ctx.cfg.evaluate.rerank_dev_top))
    gain = f"nDCG@10 {choice.gain:+.4f}; {choice.unseen:+.4f} on queries it was not chosen on, error {choice.error:.4f}"
    e.say(
        f"evaluate: the reranker's share is {choice.weight}: of ten above none, {choice.best} is best on "
        f"{choice.queries} dev queries ({gain}){'' if choice.weight else ', which is not enough'}"
    )
    e.ctx.out.write_json(WEIGHT, {"rerank_weight": choice.weight, "chosen_on": "dev", **asdict(choice)})
    return choice.weight


def _dev_first(e: Evaluation) -> Ranking | None:
    """The merged model's ranking of the main dev set, kept on storage; None without such a set."""
    found = first_set(e.ctx.inputs, "dev")
    if found is None:
        return None
    dev = read_set(e.ctx, found)
    if not e.ctx.out.exists(_DEV_RUN):
        ranking = _embedded(e, dev, "dev", (e.ctx.inputs["merge"] / "embedding").uri, None)
        e.ctx.out.write_table(_DEV_RUN, run_table(dev.data, ranking))
    return read_run(dev.data, e.ctx.out.read_table(_DEV_RUN))


def _scores(e: Evaluation, chosen: EvaluatedSet, first: Ranking, top: int) -> list[np.ndarray]:
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
