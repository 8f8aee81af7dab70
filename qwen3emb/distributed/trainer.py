"""Ray Train + DeepSpeed: the loop that trains an embedding model or a reranker, and resumes where it was killed."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from qwen3emb.distributed.engine import build_engine, full_weights, restore, save, set_learning_rate
from qwen3emb.errors import StageFailure
from qwen3emb.storage import Storage
from qwen3emb.train.gather import rank_and_world
from qwen3emb.train.history import History
from qwen3emb.train.rows import TrainingRow
from qwen3emb.train.schedule import batch_rows, learning_rate
from qwen3emb.train.tasks import EmbeddingTask, RerankerTask

__all__ = ["TrainJob", "fit"]

_RUN_NAME = "ray_train"


@dataclass(frozen=True)
class TrainJob:
    """Everything a training worker needs, sent to each of them.

    Attributes:
        task: what is trained.
        rows: all training rows, in the order of the data; every rank takes its slice of each global batch.
        seed: of the sample order.
        out: URI of the stage's folder.
        gpus: GPUs per worker.
    """

    task: EmbeddingTask | RerankerTask
    rows: Sequence[TrainingRow]
    seed: int
    out: str
    gpus: int


def fit(job: TrainJob) -> dict[str, Any]:
    """Train to the end, replacing lost workers and resuming a killed run; returns the stage's metrics.

    Raises:
        StageFailure: the workers failed more often than `max_failures`.
    """
    cfg, out = job.task.cfg, Storage(job.out)
    if not _finished(out, cfg.steps):
        _train(job, out)
    history, kept = History.read(out), checkpoint_names(out)
    if not _finished(out, cfg.steps):
        raise StageFailure(f"training in {out.uri} ended after {history.steps()} of {cfg.steps} steps")
    out.delete(_RUN_NAME)  # optimizer state: only an unfinished run needs it
    return {"model": kept[-1], "checkpoints": kept, **history.summary()}


def _finished(out: Storage, steps: int) -> bool:
    names = checkpoint_names(out)
    return bool(names) and names[-1].endswith(_checkpoint_name(steps)) and History.read(out).steps() == steps


def _checkpoint_name(step: int) -> str:
    return f"step_{step:06d}"


def _train(job: TrainJob, out: Storage) -> None:
    cfg = job.task.cfg
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if job.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cfg.num_workers,
            use_gpu=job.gpus > 0,
            resources_per_worker={"CPU": 1} | ({"GPU": job.gpus} if job.gpus else {}),
        ),
        run_config=RunConfig(
            name=_RUN_NAME,
            storage_path=out.uri,
            failure_config=FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        reasons = getattr(error, "worker_failures", None) or {0: error}
        raise next(iter(reasons.values())) from error


def checkpoint_names(out: Storage) -> list[str]:
    """Exported checkpoints of a training stage, oldest first."""
    return sorted({os.path.dirname(n) for n in out.names("checkpoints", "/qwen3emb.json")})


def _loop(config: dict[str, Any]) -> None:
    """What each worker runs."""
    job: TrainJob = config["job"]
    cfg = job.task.cfg
    _quieten()
    torch.set_num_threads(cfg.threads or max(1, len(os.sched_getaffinity(0)) // cfg.num_workers))
    torch.manual_seed(job.seed)
    model = job.task.load()
    if cfg.activation_checkpointing:
        model.gradient_checkpointing_enable()
    if job.gpus:
        model.to(ray.train.torch.get_device())
    engine = build_engine(model.train(), cfg.optimizer)
    history, first = _resumed(engine)
    if first >= cfg.steps:
        return
    began = time.monotonic()
    for step in range(first, cfg.steps):
        history.add(step, _step(job, engine, step), time.monotonic() - began)
        if rank_and_world()[0] == 0:
            history.show(cfg.steps)
        due = cfg.checkpoint_every and (step + 1) % cfg.checkpoint_every == 0
        if due or step + 1 == cfg.steps:
            _checkpoint(job, engine, history, step + 1)


def _quieten() -> None:
    """Leave this worker's output to the progress line and to warnings."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for name in ("ray.train", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _step(job: TrainJob, engine: Any, step: int) -> dict[str, float]:
    """One optimizer step on this rank's slice of global batch `step`."""
    cfg, (rank, world) = job.task.cfg, rank_and_world()
    share = job.task.batch_size // world
    numbers = batch_rows(step, job.task.batch_size, len(job.rows), job.seed)[rank * share : (rank + 1) * share]
    lr = learning_rate(step, cfg.steps, cfg.optimizer)
    set_learning_rate(engine, lr)
    loss, metrics = job.task.loss(engine, [job.rows[i] for i in numbers])
    # DeepSpeed averages gradients over ranks; the exact global gradient is their sum.
    engine.backward(loss * world)
    engine.step()
    return metrics | {"loss": float(loss.detach()), "lr": lr, "rows": float(job.task.batch_size)}


def _resumed(engine: Any) -> tuple[History, int]:
    """Metrics so far and the step to go on with, from Ray Train's latest registered checkpoint."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return History(), 0
    with checkpoint.as_directory() as folder:
        state = restore(engine, Path(folder))
    return History(state["history"]), int(state["step"])


def _checkpoint(job: TrainJob, engine: Any, history: History, step: int) -> None:
    """Validate, export a model directory, and register the state to resume from (in that order)."""
    engine.eval()
    history.validated(step, job.task.validate(engine))
    engine.train()
    weights = full_weights(engine)
    name = _checkpoint_name(step)
    if rank_and_world()[0] == 0:
        _export(job, weights, engine.module.config, name)
        history.write(Storage(job.out))
        history.show(job.task.cfg.steps, force=True)
    del weights
    metrics = history.latest()
    if step == job.task.cfg.steps:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save(engine, Path(folder), {"step": step, "history": history.rows, "rng": torch.get_rng_state()})
        state = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=state, checkpoint_dir_name=name)


def _export(job: TrainJob, weights: dict[str, torch.Tensor], config: Any, name: str) -> None:
    """Write checkpoints/NAME so that it is there as a whole or not at all, and drop the oldest beyond the limit."""
    out = Storage(job.out)
    target = Path(out.path(f"checkpoints/{name}")) if out.is_local else None
    parent = target.parent if target else None
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".export-"))
    job.task.export(folder, weights, config)
    if target:
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    else:
        out.upload(folder, f"checkpoints/{name}")
        shutil.rmtree(folder)
    for old in checkpoint_names(out)[: -job.task.cfg.keep_checkpoints]:
        out.delete(old)
