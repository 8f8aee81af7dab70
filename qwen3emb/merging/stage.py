"""The stage `merge`: SLERP over the last checkpoints of both supervised trainings (RECIPE section 4)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import MergeConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import gather
from qwen3emb.export.export import SEQUENCE_CLASSIFIER, export_sequence_classifier
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.merging.pieces import Piece, merge_piece
from qwen3emb.merging.report import SlerpReport
from qwen3emb.merging.search import best_checkpoints
from qwen3emb.merging.weights import loss_probe, probed_weights
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.stored import checkpoints

__all__ = ["EMBEDDING", "RERANKER", "merge_models"]

EMBEDDING, RERANKER = "embedding", "reranker"
"""Folders of the merged models."""


@dataclass(frozen=True)
class _Merge:
    """One model to merge: checkpoints, base and output as URIs."""

    checkpoints: list[str]
    base: str
    on: str
    weights: list[float] | None
    output: str
    classifier: bool
    linear: bool = False


def merge_models(ctx: StageContext[RunConfig], say: Callable[[str], None]) -> StageResult:
    """Merge the embedding model and, where the run has one, the reranker; write the models and `report.json`.

    The reranker is also written as a one-label sequence classifier, in a folder inside its own.

    Args:
        ctx: the stage.
        say: called with each line of progress.

    Returns:
        Numbers of tensors as rows, and metrics of each model.

    Raises:
        UserError: the checkpoints cannot be merged, or the base is not the one they were trained from.
    """
    cfg, models = ctx.cfg.merge, ctx.cfg.models
    work = {EMBEDDING: _work(ctx, "supervised", models.base, EMBEDDING, say)}
    if "reranker" in ctx.inputs:
        work[RERANKER] = _work(ctx, "reranker", models.reranker_base or models.base, RERANKER, say)
    searched: dict[str, float] = {}
    if cfg.search:
        base = Path(work[EMBEDDING].base) if cfg.on == "task_vectors" else None
        chosen, weights, searched = best_checkpoints(ctx, work[EMBEDDING].checkpoints, base, say)
        work[EMBEDDING] = replace(work[EMBEDDING], checkpoints=chosen, weights=weights)
    if cfg.method != "slerp":
        weights = _probed(ctx, work[EMBEDDING].checkpoints, say)
        work[EMBEDDING] = replace(work[EMBEDDING], weights=weights, linear=True)
    task = ray.remote(_merge)
    reports = dict(zip(work, gather([task.remote(w) for w in work.values()], "merge"), strict=True))
    ctx.out.write_json("report.json", reports)
    for name, report in reports.items():
        say(f"merge: {name}: {_sentence(report, cfg)}")
    metrics = {name: _figures(report) for name, report in reports.items()}
    if searched:
        metrics["dev_ndcg@10"] = searched
    tensors = sum(report["summary"]["tensors"] for report in reports.values())
    return StageResult(tensors, tensors, {}, metrics)


def _work(ctx: StageContext[RunConfig], stage: str, base: str, output: str, say: Callable[[str], None]) -> _Merge:
    """The merge of the last `merge.last` checkpoints of `stage`, or of fewer where it kept fewer."""
    cfg = ctx.cfg.merge
    kept = [c.uri for c in checkpoints(ctx.inputs[stage])][-cfg.last :]
    if len(kept) < cfg.last:
        say(f"merge: {stage} kept {len(kept)} checkpoints, merge.last is {cfg.last}; merging what there is")
    ctx.out.delete(output)  # of a run that was killed
    weights = cfg.weights[-len(kept) :] if cfg.weights else None
    return _Merge(kept, str(resolve_model(base)), cfg.on, weights, (ctx.out / output).uri, output == RERANKER)


def _probed(ctx: StageContext[RunConfig], checkpoints: Sequence[str], say: Callable[[str], None]) -> list[float]:
    """The weights of a linear merge, from a Ray task that holds the model."""
    probe = loss_probe(ctx, checkpoints)
    task = ray.remote(probed_weights).options(num_gpus=probe.gpus)
    [(weights, lines)] = gather([task.remote(probe)], "merge: weights by the loss")
    for line in lines:
        say(f"merge: {line}")
    return list(weights)


def _merge(work: _Merge) -> dict[str, Any]:
    """Ray task: merge one model, write it to storage, and return the report."""
    output = Storage(work.output)
    with tempfile.TemporaryDirectory() as folder:
        target = output.local() if output.is_local else Path(folder) / "model"
        report = merge_checkpoints(
            [Storage(uri).local() for uri in work.checkpoints],
            target,
            weights=work.weights,
            base=Path(work.base) if work.on == "task_vectors" else None,
            on=work.on,
            linear=work.linear,
            run_pieces=_on_this_node,
        )
        if work.classifier:
            export_sequence_classifier(target, target / SEQUENCE_CLASSIFIER)
        output.upload(target, "")
    # URIs on storage, not the local copies that were read
    return report.to_dict() | {"checkpoints": work.checkpoints}


def _on_this_node(pieces: Sequence[Piece]) -> list[list[SlerpReport]]:
    """Pieces merged by Ray tasks beside this one, which share its disk; as many at a time as there are free CPUs."""
    if len(pieces) == 1:
        return [merge_piece(pieces[0])]
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(merge_piece).options(num_cpus=0.5, scheduling_strategy=this_node)
    return gather([task.remote(piece) for piece in pieces], "merge: pieces of a model")


def _sentence(report: dict[str, Any], cfg: MergeConfig) -> str:
    summary = report["summary"]
    names = ", ".join(uri.rsplit("/", 1)[-1] for uri in report["checkpoints"])
    paths = ", ".join(f"{n} {path}" for path, n in summary["paths"].items() if n)
    if summary["max_angle_degrees"] is None:
        return f"{summary['tensors']} tensors of {names}: {paths}"
    mean, widest = summary["mean_angle_degrees"], summary["max_angle_degrees"]
    shares = [round(weight, 3) for weight in report["weights"]]
    return (
        f"{summary['tensors']} tensors of {names} on {cfg.on} at {shares}: {paths}; "
        f"angle {mean:.2f} degrees on average, at most {widest:.2f} ({summary['max_angle_tensor']})"
    )


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    summary = report["summary"]
    angles = {key: summary[key] for key in ("mean_angle_degrees", "max_angle_degrees")}
    return {
        "checkpoints": len(report["checkpoints"]),
        "weights": [round(weight, 4) for weight in report["weights"]],
        **summary["paths"],
        **{key: None if value is None else round(value, 4) for key, value in angles.items()},
    }
