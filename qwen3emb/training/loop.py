"""Ray Train + DeepSpeed: the loop that trains an embedding model or a reranker, and resumes where it was killed."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from qwen3emb.config.resources import trainer_bundle
from qwen3emb.config.run import OWN_CLUSTER
from qwen3emb.config.training import TrainEmbeddingConfig, TrainRerankerConfig
from qwen3emb.core.cores import threads_of, usable_cores
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.events import current_attempt, note, taking_part
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import late
from qwen3emb.encoding.gauges import export_progress
from qwen3emb.objective.allocator import give_back, keep_freed
from qwen3emb.objective.ranks import rank_and_world
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.training.checkpoints import checkpoint_name, checkpoint_names, drop_oldest, export_checkpoint, sweep
from qwen3emb.training.history import History
from qwen3emb.training.mixture import Mixture
from qwen3emb.training.precision import settled_dtype
from qwen3emb.training.resharding import place_of_node, saved_world_size, universal
from qwen3emb.training.schedule import learning_rate
from qwen3emb.training.seeding import seed_step
from qwen3emb.training.tasks import EmbeddingTask, RerankerTask
from qwen3emb.training.zero import ZeroEngine, build_engine, full_weights, restore, save, set_learning_rate

__all__ = ["TrainJob", "fit"]

_RUN_NAME = "ray_train"
_BAD = "bad_batches.jsonl"
_FAILED = "failed.json"
_STARTS = 60
"""How often Ray Train asks for all workers at once, a minute each time; left alone it asks for ever. A minute, since an
elastic training asks for as many as it last saw room for, and looks again only then."""


@dataclass(frozen=True)
class TrainJob:
    """Everything that a training worker needs; a copy is sent to each worker.

    Attributes:
        task: the model to train and how its steps, validation and export are done.
        rows: dataset -> its training rows; each global batch is of one dataset, the same on every rank.
        seed: of the sample order.
        out: URI of the stage's folder.
        gpus: GPUs per worker.
    """

    task: EmbeddingTask | RerankerTask
    rows: Mapping[str, Sequence[TrainingRow]]
    seed: int
    out: str
    gpus: int

    def mixture(self) -> Mixture:
        """Which rows each step takes."""
        sizes = {name: len(rows) for name, rows in self.rows.items()}
        return Mixture(sizes, self.task.weights(), self.task.temperature, self.task.batch_size, self.seed)


def fit(job: TrainJob) -> dict[str, Any]:
    """Train to the last step; lost workers are replaced, and a killed run is resumed from its latest checkpoint.

    Returns:
        The stage's metrics: `model` (the final checkpoint), `checkpoints`, and `History.summary`.

    Raises:
        UserError: the model cannot be loaded or trained with this configuration.
        StageFailure: the workers failed more often than `max_failures`.
    """
    cfg, out = job.task.cfg, Storage(job.out)
    sweep(out)
    if not _finished(out, cfg.steps):
        _train(job, out)
        sweep(out)  # a worker that was lost and replaced may have left something too
    history, kept = History.read(out), checkpoint_names(out)
    if not _finished(out, cfg.steps):
        raise StageFailure(f"training in {out.uri} ended after {history.steps()} of {cfg.steps} steps")
    out.delete(_RUN_NAME)  # optimizer state: only an unfinished run needs it
    best = history.best_step()
    model = f"checkpoints/{checkpoint_name(best)}" if best and cfg.stop_after else kept[-1]
    return {"model": model, "checkpoints": kept, **history.summary()}


def _finished(out: Storage, steps: int) -> bool:
    names, history = checkpoint_names(out), History.read(out)
    done = history.steps() == steps or history.stopped
    return done and bool(names) and names[-1].endswith(checkpoint_name(history.steps()))


def _train(job: TrainJob, out: Storage) -> None:
    cfg = job.task.cfg
    out.delete(_FAILED)
    trainer = _Trainer(
        _worker,
        train_loop_config={"job": job, "attempt": current_attempt()},
        # Gathers of vectors on CPUs (validation) and on GPUs (the loss) go each over what knows their device.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if job.gpus else "gloo"),
        scaling_config=ScalingConfig(
            # A range is elastic: lost workers are done without, new nodes are used.
            num_workers=cfg.num_workers,  # type: ignore[arg-type]  # mypy reads the signature of Ray Train v1
            use_gpu=job.gpus > 0,
            resources_per_worker=trainer_bundle(job.gpus).resources(),
        ),
        run_config=RunConfig(
            name=_RUN_NAME,
            storage_path=out.uri,
            failure_config=FailureConfig(  # type: ignore[call-arg]  # likewise
                max_failures=cfg.max_failures, controller_failure_limit=_STARTS - 1
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()  # its own limits: workers that do not answer for ten minutes, collectives after thirty
    except ControllerError as error:
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise _no_room(job) from error
        raise
    except ray.train.TrainingFailedError as error:
        reasons = getattr(error, "worker_failures", None) or {0: error}
        raise next(iter(reasons.values())) from error


def _no_room(job: TrainJob) -> StageFailure:
    seconds = _STARTS * float(os.environ.get(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, 60))
    each = "1 CPU" + (f" and {job.gpus} GPUs" if job.gpus else "")
    return late(job.out, f"no room for {job.task.cfg.least_workers} training workers of {each} at once", seconds)


class _Trainer(TorchTrainer):
    """Ray's trainer without the actor that frees a lost controller's resources, where the cluster ends with the job.

    That actor asks Ray's dashboard about the controller. An embedded Ray has no dashboard, and stopping the actor waits
    for an answer, 12 seconds at the end of every training; on a private head it prints a stack trace.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # private
        if not os.environ.get(OWN_CLUSTER):
            return callbacks
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def _worker(config: dict[str, Any]) -> None:
    """Entry point of each worker. A `UserError` or `StageFailure` is kept, so that a restarted worker raises it again
    without training."""
    job: TrainJob = config["job"]
    out = Storage(job.out)
    if out.exists(_FAILED):
        before = out.read_json(_FAILED)
        raise (UserError if before["mistake"] else StageFailure)(before["message"])
    try:
        with taking_part(config["attempt"], _say, export_progress):
            _loop(job)
    except (UserError, StageFailure) as error:
        out.write_json(_FAILED, {"message": str(error), "mistake": isinstance(error, UserError)})
        raise


def _loop(job: TrainJob) -> None:
    """Run the steps from the latest checkpoint to the end."""
    cfg = job.task.cfg
    _quieten()
    local_workers = ray.train.get_context().get_local_world_size()  # workers of this training on this node
    torch.set_num_threads(cfg.threads or threads_of(usable_cores(), local_workers))
    torch.manual_seed(job.seed)  # of what loading draws, the same on every rank: adapters
    keep_freed()
    model = job.task.load(settled_dtype(cfg.optimizer.dtype, bool(job.gpus), Storage(job.out)))
    if cfg.activation_checkpointing:
        model.gradient_checkpointing_enable()
    if job.gpus:
        model.to(ray.train.torch.get_device())
    engine, history, first = _resumed(model.train(), cfg)
    mixture = job.mixture()
    began, noticed = time.monotonic(), frozenset[str]()
    for step in range(first, cfg.steps):
        history.add(step, _step(job, engine, mixture, step), time.monotonic() - began)
        if rank_and_world()[0] == 0:
            history.show(cfg.steps)
        due = cfg.checkpoint_every and (step + 1) % cfg.checkpoint_every == 0
        if due or step + 1 == cfg.steps:
            _checkpoint(job, engine, history, step + 1)
        else:  # every rank comes here or none, as asking for a notice waits for all
            before, noticed = noticed, _nodes_to_be_reclaimed()
            if noticed - before or (cfg.resume_every and (step + 1) % cfg.resume_every == 0):
                _save(engine, history, step + 1)
        if history.stopped:
            break


def _nodes_to_be_reclaimed() -> frozenset[str]:
    """The nodes of this training that the cloud has announced to take away; a barrier of all ranks."""
    if os.environ.get(OWN_CLUSTER):
        return frozenset()
    info = ray.train.get_preemption_info()
    return frozenset(info.preempted_node_ids) if info else frozenset()


def _quieten() -> None:
    """Reduce this worker's output to the progress line and to warnings."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for name in ("ray.train", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _step(job: TrainJob, engine: Any, mixture: Mixture, step: int) -> dict[str, Any]:
    """One optimizer step on global batch `step`; a batch with NaN or infinite gradients changes nothing.

    Raises:
        StageFailure: more than `max_bad_steps` such batches.
    """
    cfg = job.task.cfg
    seed_step(job.seed, step)
    dataset, numbers = mixture.batch(step)
    rows = [job.rows[dataset][i] for i in numbers]
    lr = learning_rate(step, cfg.steps, cfg.optimizer)
    set_learning_rate(engine, lr)
    wrapped = ZeroEngine(engine)
    metrics = job.task.step(wrapped, job.task.rows_at(step, rows))
    good = wrapped.step() and math.isfinite(metrics["loss"])
    figures = metrics | {"lr": lr, "rows": float(len(rows)), "skipped": float(not good)}
    if not good:
        _bad_batch(job, step, dataset, rows, metrics["loss"])
    return {"dataset": dataset} | figures


def _bad_batch(job: TrainJob, step: int, dataset: str, rows: Sequence[TrainingRow], loss: float) -> None:
    """Record the rows of a skipped batch; fail where there are more such batches than `max_bad_steps`."""
    out, limit = Storage(job.out), job.task.cfg.max_bad_steps
    before = out.read_bytes(_BAD).splitlines() if out.exists(_BAD) else []
    record = {"step": step + 1, "dataset": dataset, "loss": str(loss), "rows": [row.id for row in rows]}
    lines = [line for line in before if json.loads(line)["step"] != step + 1]
    if rank_and_world()[0] == 0:
        out.write_bytes(_BAD, b"\n".join([*lines, json.dumps(record).encode()]) + b"\n")
    if len(lines) + 1 > limit:
        raise StageFailure(
            f"step {step + 1}: NaN or infinite loss or gradient, {len(lines) + 1} times so far and max_bad_steps is "
            f"{limit}; the rows are in {out.uri}/{_BAD}. Lower optimizer.lr, or look at these rows"
        )


def _resumed(model: Any, cfg: TrainEmbeddingConfig | TrainRerankerConfig) -> tuple[Any, History, int]:
    """(engine, metrics so far, next step) from Ray Train's latest checkpoint, or from the start where there is none.

    The checkpoint may be of another world size: the order of the samples does not depend on it.
    """
    checkpoint, optimizer = ray.train.get_checkpoint(), cfg.optimizer
    if checkpoint is None:
        return build_engine(model, optimizer), History(), 0
    with checkpoint.as_directory() as state_folder, tempfile.TemporaryDirectory() as scratch:
        folder, saved_world, world = Path(state_folder), saved_world_size(Path(state_folder)), rank_and_world()[1]
        resharded = saved_world not in (None, world)
        if resharded:
            context = ray.train.get_context()
            place = place_of_node(Path(scratch), context.get_node_rank(), context.get_local_rank())
            folder = universal(folder, place)
        engine = build_engine(model, optimizer, universal=resharded)
        state = restore(engine, folder)
        if world > 1:
            torch.distributed.barrier()  # before the converting rank removes its folder
    _say_what_differs(cfg, int(state["step"]), int(state.get("world", world)))
    if rank_and_world()[0] == 0:
        note("resumed", reason=f"training goes on after step {state['step']} of {cfg.steps}")
    return engine, History(state["history"]), int(state["step"])


def _say_what_differs(cfg: TrainEmbeddingConfig | TrainRerankerConfig, step: int, before: int) -> None:
    """Say in one line that a run resumed with another number of workers is not bit for bit the interrupted one."""
    rank, world = rank_and_world()
    if rank or world == before:
        return
    dropped = "; dropout draws other numbers" if cfg.lora and cfg.lora.dropout else ""
    _say(
        f"going on after step {step} with {world} workers instead of {before}: the same global batches, but sums are "
        f"rounded otherwise{dropped}"
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _checkpoint(job: TrainJob, engine: Any, history: History, step: int) -> None:
    """Validate, export a model directory, then save the state to resume from and report it to Ray Train.

    After the last step no state is saved, since there is nothing to resume: only the metrics are reported.
    """
    engine.eval()
    history.validated(step, job.task.validate(engine), job.task.cfg.stop_after)
    engine.train()
    weights = full_weights(engine)
    if rank_and_world()[0] == 0:
        out = Storage(job.out)
        export_checkpoint(out, step, partial(job.task.export, weights=weights, config=engine.module.config))
        drop_oldest(out, job.task.cfg.keep_checkpoints, history.best_step())
        history.write(out)
        history.show(job.task.cfg.steps, force=True)
    del weights
    give_back()
    if step == job.task.cfg.steps or history.stopped:
        ray.train.report(history.latest())
        return
    _save(engine, history, step)


def _save(engine: Any, history: History, step: int) -> None:
    """Save the state to resume from and report it to Ray Train, which uploads it while the next steps are made."""
    folder = tempfile.mkdtemp(prefix="qwen3emb-state-")  # Ray Train deletes it when it is on storage
    save(engine, Path(folder), {"step": step, "history": history.rows, "world": rank_and_world()[1]})
    state = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(
        history.latest(),
        checkpoint=state,
        checkpoint_dir_name=checkpoint_name(step),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
    )
