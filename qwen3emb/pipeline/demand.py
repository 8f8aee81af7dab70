"""What each stage asks of a cluster, from the configuration alone and before anything starts.

The numbers of a single task or actor are those that the stages use themselves (`config.resources`); how many there are
is said here once more, and tests/unit/pipeline/test_demand.py reads the stages' source and fails where they differ.

Nothing else of a run asks for CPUs or GPUs: drivers of Ray jobs run on the head with 0 of both (a job's
`entrypoint_num_cpus` is 0 where it is not given), and so do the controllers of Ray Train and Ray Serve, Serve's
proxies, and the actor that counts in `synthesize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwen3emb.config.resources import (
    ENGINES_PER_READER,
    GATEWAY,
    SMALL_TASK,
    TASK,
    Bundle,
    encoder_bundle,
    engine_bundle,
    probe_bundle,
    reader_bundle,
    replica_bundle,
    trainer_bundle,
)
from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import RERANKER
from qwen3emb.pipeline.stages import enabled_stages
from qwen3emb.text.evaluation_sets import asked_passages

__all__ = ["SERVE", "Demand", "run_demands", "stage_demands"]

SERVE = "serve"
"""Stands in for a stage: what `jobs.serve` and `serve.deploy:build` ask for."""

_GPUS = "cluster.gpus_per_worker"


@dataclass(frozen=True)
class Demand:
    """Bundles of one size that a stage asks for. A bundle lies on one node, different ones may lie on any.

    Attributes:
        stage: name of the stage, or `serve`.
        what: one of the things that hold the bundles, e.g. `engine`.
        count: how many bundles.
        cpus, gpus: of each bundle.
        together: all of them must be there before any work is done: the workers of a training, a pool whose actors all
            load their model first, the replicas of `serve`. Otherwise one is enough, and more are only faster.
        phase: demands of a stage with the same phase are held at the same time, others one after another.
        size_key, count_key: keys of the config that a user lowers to ask for smaller bundles, or for fewer; or "".
    """

    stage: str
    what: str
    count: int
    cpus: float
    gpus: float
    together: bool
    phase: int = 0
    size_key: str = ""
    count_key: str = ""


def run_demands(cfg: RunConfig) -> list[Demand]:
    """The demands of all stages that the run has, in their order."""
    return [demand for name in enabled_stages(cfg) for demand in stage_demands(cfg, name)]


def stage_demands(cfg: RunConfig, stage: str) -> list[Demand]:
    """What a stage of the run (or `SERVE`) asks for."""
    found = _DEMANDS[stage](cfg)
    return [demand for demand in found if demand.count]


def _of(
    stage: str,
    what: str,
    count: int,
    bundle: Bundle,
    together: bool = False,
    *,
    phase: int = 0,
    size_key: str = "",
    count_key: str = "",
) -> Demand:
    return Demand(stage, what, count, bundle.cpus, bundle.gpus, together, phase, size_key, count_key)


def _pool(cfg: RunConfig, stage: str, what: str, count: int, count_key: str, phase: int = 0) -> Demand:
    """A pool of encoders or rerankers (`encoding.pool`), whose actors all load the model before the first text."""
    bundle = encoder_bundle(cfg.cluster.gpus_per_worker)
    return _of(stage, what, count, bundle, True, phase=phase, size_key=_GPUS, count_key=count_key)


def _corpus(cfg: RunConfig) -> list[Demand]:
    return [_of("corpus", "reading task", cfg.corpus.workers, TASK, count_key="corpus.workers")]


def _labelled(cfg: RunConfig) -> list[Demand]:
    return [_of("labelled", "task", len(cfg.labelled.sets) + len(cfg.labelled.use), TASK)]


def _synthesize(cfg: RunConfig) -> list[Demand]:
    section = cfg.synthesize
    if section is None:
        return []
    gpus = cfg.cluster.gpus_per_worker > 0
    bundle, size_key = engine_bundle(section, gpus), "synthesize.tensor_parallel" if gpus else "synthesize.threads"
    drafts = cfg.evaluate.workers if asked_passages(cfg) else 0
    return [
        _of("synthesize", "engine", section.engines, bundle, size_key=size_key, count_key="synthesize.engines"),
        _of(
            *("synthesize", "reader", -(-section.engines // ENGINES_PER_READER), reader_bundle(section)),
            size_key="synthesize.reader_gpus" if section.reader_gpus else "",
        ),
        _of("synthesize", "ranking task", drafts, TASK, phase=1, count_key="evaluate.workers"),
    ]


def _training(cfg: RunConfig, stage: str) -> list[Demand]:
    """The teacher's pool where the stage has a teacher, then the workers of the training."""
    section = getattr(cfg, stage)
    if section is None:
        return []
    teachers = section.teacher.workers if section.teacher else 0
    bundle, count_key = trainer_bundle(cfg.cluster.gpus_per_worker), f"{stage}.num_workers"
    least = section.least_workers
    return [
        _pool(cfg, stage, "teacher", teachers, f"{stage}.teacher.workers"),
        _of(stage, "training worker", least, bundle, True, phase=1, size_key=_GPUS, count_key=count_key),
    ]


def _filter(cfg: RunConfig) -> list[Demand]:
    return [_pool(cfg, "filter", "encoder", cfg.filter.workers, "filter.workers")]


def _mine(cfg: RunConfig) -> list[Demand]:
    workers, key = cfg.mine.workers, "mine.workers"
    return [
        _pool(cfg, "mine", "encoder", workers, key),
        _of("mine", "search task", 1, TASK, phase=1),  # as many as there are CPUs
        _pool(cfg, "mine", "reranker", workers if cfg.mine.veto else 0, key, phase=2),
    ]


def _merge(cfg: RunConfig) -> list[Demand]:
    """Encoders that score candidates, beside which weights may be probed; rerankers; then the merges themselves."""
    merge, workers, key = cfg.merge, cfg.evaluate.workers, "evaluate.workers"
    best, gpus = merge.keep == "best", cfg.cluster.gpus_per_worker
    probed = merge.method != "slerp" or (best and set(merge.candidates) != {"slerp"})
    models = 2 if cfg.reranker else 1
    return [
        _pool(cfg, "merge", "encoder", workers if best or merge.search else 0, key),
        _of("merge", "probing task", int(probed), probe_bundle(gpus), size_key=_GPUS),
        _pool(cfg, "merge", RERANKER, workers if best and cfg.reranker else 0, key, phase=1),
        _of("merge", "merging task", models, TASK, phase=2),
    ]


def _evaluate(cfg: RunConfig) -> list[Demand]:
    workers, key = cfg.evaluate.workers, "evaluate.workers"
    rerankers = workers if cfg.reranker else 0
    return [
        _pool(cfg, "evaluate", "encoder", workers, key),
        _pool(cfg, "evaluate", RERANKER, rerankers, key, phase=1),
    ]


def _index(cfg: RunConfig) -> list[Demand]:
    bundle = encoder_bundle(cfg.cluster.gpus_per_worker)
    return [
        _of("index", "encoder", cfg.index.workers, bundle, size_key=_GPUS, count_key="index.workers"),
        _of("index", "task", 1, SMALL_TASK),
    ]


def _serve(cfg: RunConfig) -> list[Demand]:
    serve, bundle = cfg.serve, replica_bundle(cfg.serve)
    size_key = "serve.num_gpus" if serve.num_gpus else "serve.threads"
    rerankers = serve.reranker_replicas if cfg.reranker else 0
    counts = {"embedder": serve.embedder_replicas, RERANKER: rerankers}
    return [
        *(
            _of(SERVE, f"{name} replica", n, bundle, True, size_key=size_key, count_key=f"serve.{name}_replicas")
            for name, n in counts.items()
        ),
        _of(SERVE, "replica without a model", 2, GATEWAY, True),
    ]


_DEMANDS: dict[str, Callable[[RunConfig], list[Demand]]] = {
    "corpus": _corpus,
    "labelled": _labelled,
    "synthesize": _synthesize,
    "weak": lambda cfg: _training(cfg, "weak"),
    "filter": _filter,
    "mine": _mine,
    "supervised": lambda cfg: _training(cfg, "supervised"),
    "reranker_weak": lambda cfg: _training(cfg, "reranker_weak"),
    "reranker": lambda cfg: _training(cfg, "reranker"),
    "distill": lambda cfg: _training(cfg, "distill"),
    "merge": _merge,
    "evaluate": _evaluate,
    "index": _index,
    SERVE: _serve,
}
