"""The plan of a run: an estimate for each of its stages, from the configuration and named assumptions alone."""

from __future__ import annotations

from collections import Counter
from functools import cache

from qwen3emb.config.run import RunConfig
from qwen3emb.core.cores import usable_cores
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.demand import run_demands
from qwen3emb.pipeline.planning.assumptions import Assumptions
from qwen3emb.pipeline.planning.datasets import corpus_size, dataset_sizes
from qwen3emb.pipeline.planning.hardware import Gpu
from qwen3emb.pipeline.planning.models import model_shape
from qwen3emb.pipeline.planning.scoring import SCORING
from qwen3emb.pipeline.planning.trainings import embedding_estimate, reranker_estimate
from qwen3emb.pipeline.planning.work import Planner, StageEstimate
from qwen3emb.pipeline.stages import enabled_stages

__all__ = ["gpu_demand", "planned"]

_RERANKERS = ("reranker", "reranker_weak")


def gpu_demand(cfg: RunConfig) -> int:
    """The most GPUs that any stage asks for at a time."""
    asked: Counter[tuple[str, int]] = Counter()
    for demand in run_demands(cfg):
        asked[demand.stage, demand.phase] += int(demand.count * demand.gpus)
    return max(asked.values(), default=0)


def planned(
    cfg: RunConfig, assumed: Assumptions, gpu: Gpu | None = None, gpus: int | None = None
) -> list[StageEstimate]:
    """The estimates of all stages of the run, in the order of the pipeline.

    Args:
        cfg: the run.
        assumed: what is assumed.
        gpu: of the nodes; None where the run uses none.
        gpus: how many there are; None = as many as a stage asks for.

    Raises:
        UserError: a model's shape is not known, or the number of passages is not.
    """
    corpus = corpus_size(cfg, assumed)
    cores = float(usable_cores()) if gpu is None else assumed.cores_per_gpu * (gpus or gpu_demand(cfg))
    datasets = dataset_sizes(cfg, assumed, corpus)
    for key, name in (("models.base", cfg.models.base), ("models.reranker_base", cfg.models.reranker_base)):
        if name and model_shape(name) is None:
            raise UserError(f"{key} is a server, {name}; a training starts from a model of which one has the weights")
    planner = Planner(cfg, assumed, gpu, gpus, cores, corpus, datasets, cache(model_shape))
    return [_estimate(planner, name) for name in enabled_stages(cfg)]


def _estimate(planner: Planner, name: str) -> StageEstimate:
    if name in SCORING:
        return SCORING[name](planner)
    return reranker_estimate(planner, name) if name in _RERANKERS else embedding_estimate(planner, name)
