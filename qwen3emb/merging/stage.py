"""The stage `merge`: one model of the last checkpoints of each supervised training (RECIPE section 4)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qwen3emb.config.merging import MergeConfig
from qwen3emb.config.resources import MERGE_PIECE, TASK, probe_bundle
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.card import write_card
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import gather
from qwen3emb.export.export import SEQUENCE_CLASSIFIER, export_sequence_classifier
from qwen3emb.merging.candidates import Probed, configured_weights
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.merging.choice import Choice
from qwen3emb.merging.dev_scores import EmbeddingScores, RerankerScores, dev_set
from qwen3emb.merging.pieces import Piece, merge_piece
from qwen3emb.merging.report import SlerpReport
from qwen3emb.merging.search import SCRATCH, Comparison, Picked, pick
from qwen3emb.merging.weights import loss_probe, probed_weights
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.stored import checkpoints, final_model

__all__ = ["EMBEDDING", "RERANKER", "merge_models"]

EMBEDDING, RERANKER = "embedding", "reranker"
"""Folders of the merged models."""

_FURTHER = ("distill",)


@dataclass(frozen=True)
class _Merge:
    """One model to merge: checkpoints by name, base and output as URIs; `method` is what the weights are from."""

    checkpoints: dict[str, str]
    base: str
    on: str
    weights: Sequence[float] | None
    output: str
    classifier: bool
    method: str = "slerp"


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
    work = {EMBEDDING: _work(ctx, _last(ctx, "supervised", say), _further(ctx), models.base, EMBEDDING)}
    if "reranker" in ctx.inputs:
        last, base = _last(ctx, "reranker", say), models.reranker_base or models.base
        work[RERANKER] = _work(ctx, last, {}, base, RERANKER)
    picked = _picked(ctx, work, say)
    for name, found in picked.items():
        work[name] = _of(found, work[name])
    if EMBEDDING not in picked and cfg.method != "slerp":
        weights = _probed(ctx, cfg.method, list(work[EMBEDDING].checkpoints.values()), say)
        work[EMBEDDING] = replace(work[EMBEDDING], weights=weights, method=cfg.method)
    task: Any = ray.remote(_merge).options(**TASK.options())
    reports = dict(zip(work, gather([task.remote(w) for w in work.values()], "merge"), strict=True))
    choices = {name: found.choice for name, found in picked.items() if found.choice}
    for name, choice in choices.items():
        reports[name]["comparison"] = choice.as_json()
    ctx.out.write_json("report.json", reports)
    if choices:
        write_card(ctx.out, "Merge", _card(choices))
    for name, report in reports.items():
        say(f"merge: {name}: {_sentence(report, list(work[name].checkpoints), cfg)}")
    metrics = {name: _figures(report) | {"method": work[name].method} for name, report in reports.items()}
    if EMBEDDING in picked:
        metrics["dev_ndcg@10"] = picked[EMBEDDING].means
    tensors = sum(report["summary"]["tensors"] for report in reports.values())
    return StageResult(tensors, tensors, {}, metrics, (SCRATCH,))


def _picked(ctx: StageContext[RunConfig], work: Mapping[str, _Merge], say: Callable[[str], None]) -> dict[str, Picked]:
    """What scores on the dev set decide: model -> the candidate that is kept of it; empty without such a setting."""
    cfg = ctx.cfg.merge
    if not (cfg.search or cfg.keep == "best"):
        return {}
    dev = dev_set(ctx)
    embedding, further = work[EMBEDDING], list(_further(ctx))

    def find(method: Probed, checkpoints: Sequence[str]) -> list[float]:
        return _probed(ctx, method, checkpoints, say)

    picked = {}
    with EmbeddingScores(ctx.cfg, dev) as score:
        comparison = Comparison(ctx, EMBEDDING, embedding.checkpoints, _base(embedding), score, say)
        picked[EMBEDDING] = pick(cfg, comparison, further, find)
    if cfg.keep == "best" and RERANKER in work:
        reranker, last = work[RERANKER], list(embedding.checkpoints.values())[-1]
        rerank = RerankerScores(ctx.cfg, dev, last)
        comparison = Comparison(ctx, RERANKER, reranker.checkpoints, _base(reranker), rerank, say)
        by_slerp = cfg.model_copy(update={"method": "slerp", "candidates": [], "search": False})
        picked[RERANKER] = pick(by_slerp, comparison, (), find)
    for name, found in picked.items():
        if found.choice:
            say(f"merge: {name}: {found.choice.sentence()}")
    return picked


def _further(ctx: StageContext[RunConfig]) -> dict[str, str]:
    """Name -> URI of the embedding models that are merged beside the supervised stage's checkpoints."""
    return {name: final_model(ctx.inputs[name]).uri for name in _FURTHER if name in ctx.inputs}


def _base(work: _Merge) -> Path | None:
    """The base of the task vectors; None where weights themselves are merged."""
    return resolve_model(work.base) if work.on == "task_vectors" else None


def _of(picked: Picked, work: _Merge) -> _Merge:
    """The merge that a candidate stands for."""
    candidate = picked.candidate
    checkpoints = {name: picked.models[name] for name in candidate.checkpoints}
    return replace(work, checkpoints=checkpoints, weights=candidate.weights, method=candidate.method)


def _last(ctx: StageContext[RunConfig], stage: str, say: Callable[[str], None]) -> dict[str, str]:
    """Name -> URI of the last `merge.last` checkpoints of `stage`, oldest first, or of fewer where it kept fewer."""
    last = ctx.cfg.merge.last
    kept = {c.uri.rsplit("/", 1)[-1]: c.uri for c in checkpoints(ctx.inputs[stage])[-last:]}
    if len(kept) < last:
        say(f"merge: {stage} kept {len(kept)} checkpoints, merge.last is {last}; merging what there is")
    return kept


def _work(
    ctx: StageContext[RunConfig], last: Mapping[str, str], further: Mapping[str, str], base: str, output: str
) -> _Merge:
    """The merge of a training's last checkpoints and of further models, as configured."""
    cfg = ctx.cfg.merge
    ctx.out.delete(output)  # of a run that was killed
    weights = configured_weights(cfg, len(last), len(further))
    place = (ctx.out / output).uri
    return _Merge({**last, **further}, base, cfg.on, weights, place, output == RERANKER)


def _probed(
    ctx: StageContext[RunConfig], method: Probed, checkpoints: Sequence[str], say: Callable[[str], None]
) -> list[float]:
    """The weights of a linear merge, from a Ray task that holds the model."""
    probe = loss_probe(ctx, method, checkpoints)
    task: Any = ray.remote(probed_weights).options(**probe_bundle(probe.gpus).options())
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
            [Storage(uri).local() for uri in work.checkpoints.values()],
            target,
            weights=work.weights,
            base=_base(work),
            on=work.on,
            linear=work.method != "slerp",
            run_pieces=_on_this_node,
        )
        if work.classifier:
            export_sequence_classifier(target, target / SEQUENCE_CLASSIFIER)
        output.upload(target, "")
    # URIs on storage, not the local copies that were read
    return report.to_dict() | {"checkpoints": list(work.checkpoints.values())}


def _on_this_node(pieces: Sequence[Piece]) -> list[list[SlerpReport]]:
    """Pieces merged by Ray tasks beside this one, which share its disk; as many at a time as there are free CPUs."""
    if len(pieces) == 1:
        return [merge_piece(pieces[0])]
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task: Any = ray.remote(merge_piece).options(**MERGE_PIECE.options(), scheduling_strategy=this_node)
    return gather([task.remote(piece) for piece in pieces], "merge: pieces of a model")


def _sentence(report: dict[str, Any], merged: Sequence[str], cfg: MergeConfig) -> str:
    summary, names = report["summary"], ", ".join(merged)
    paths = ", ".join(f"{n} {path}" for path, n in summary["paths"].items() if n)
    if summary["max_angle_degrees"] is None:
        return f"{summary['tensors']} tensors of {names}: {paths}"
    mean, widest = summary["mean_angle_degrees"], summary["max_angle_degrees"]
    shares = [round(weight, 3) for weight in report["weights"]]
    return (
        f"{summary['tensors']} tensors of {names} on {cfg.on} at {shares}: {paths}; "
        f"angle {mean:.2f} degrees on average, at most {widest:.2f} ({summary['max_angle_tensor']})"
    )


def _card(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The data card: for each model what is kept, and its table."""
    card: dict[str, Any] = {f"{name}_kept": choice.sentence() for name, choice in choices.items()}
    for name, choice in choices.items():
        card[f"{name}_on_{choice.queries}_dev_queries"] = {
            row.pop("name"): row for row in (row.as_json() for row in choice.rows)
        }
    return card


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    summary = report["summary"]
    angles = {key: summary[key] for key in ("mean_angle_degrees", "max_angle_degrees")}
    return {
        "checkpoints": len(report["checkpoints"]),
        "weights": [round(weight, 4) for weight in report["weights"]],
        **summary["paths"],
        **{key: None if value is None else round(value, 4) for key, value in angles.items()},
    }
