"""Evaluate any model on tasks of `mteb`: Ray workers embed the texts, the results have mteb's own format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3emb.core.storage import Storage
from qwen3emb.encoding.pool import Encoders, Rerankers
from qwen3emb.evaluation.comparison import baseline_figures, compared
from qwen3emb.evaluation.harness_model import HarnessEncoder, Instructions, TwoStageSearch, model_meta
from qwen3emb.evaluation.harness_scores import Scored, reached_tasks, score_tasks
from qwen3emb.evaluation.vector_cache import VectorCache
from qwen3emb.model.fetch import is_endpoint
from qwen3emb.model.identity import streamed_digest

__all__ = ["HarnessSettings", "evaluate_tasks"]

_Say = Callable[[str], None]


@dataclass(frozen=True)
class HarnessSettings:
    """The model to evaluate, and the settings of the evaluation.

    Attributes:
        model: directory or address of the embedding model.
        out: folder of the results.
        name: of the model in the results, `organisation/model`.
        end_token: token whose state is the embedding, for decoders that this project did not export.
        max_tokens: longest input in tokens; longer texts lose their end.
        workers: Ray workers that embed.
        gpus_per_worker: GPUs of each.
        reranker: directory of a reranker for the retrieval tasks; None = one stage only.
        rerank_top: the best documents of each query, which the reranker scores.
        instructions: task -> instruction, where it is not mteb's.
        baseline: folder of earlier results to compare with, query by query.
        data: task -> fingerprint of the folder that its data comes from (`storage.external_fingerprint`).
    """

    model: str
    out: Path
    name: str
    end_token: str | None = None
    max_tokens: int = 512
    workers: int = 1
    gpus_per_worker: float = 0
    reranker: str | None = None
    rerank_top: int = 100
    instructions: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    baseline: Path | None = None
    data: Mapping[str, str] = field(default_factory=dict)


def evaluate_tasks(tasks: Sequence[Any], settings: HarnessSettings, say: _Say) -> dict[str, Any]:
    """Evaluate a model on each task; a task whose data cannot be loaded, or that fails, is skipped with a message.

    Writes, below `settings.out`: `results/` in mteb's layout, `per_query/` (nDCG@10 of each query of a retrieval
    task), `vectors/` (the cache) and `summary.json`.

    Args:
        tasks: from `harness_tasks.open_tasks`.
        settings: the model and the settings.
        say: takes lines of progress.

    Returns:
        {"scores": {model: {task: main score of the main split, in points}},
        "splits": {model: {task: {split: points, the main one first}}},
        "skipped": {task: reason},
        "failed": names of the skipped tasks whose evaluation raised an error,
        "differences": {model: {task: gain on the main split, see `comparison.compared`}},
        "not_compared": {model: {task: reason}}}.

    Raises:
        UserError: a model cannot be loaded, or the baseline holds no results.
    """
    baseline = baseline_figures(settings.baseline)  # before hours of work are lost to a mistyped folder
    reached, skipped = reached_tasks(tasks, say)
    revision = _revision(settings.model)
    options: dict[str, Any] = {"workers": settings.workers, "gpus_per_worker": settings.gpus_per_worker}
    by_type = {task.metadata.name: task.abstask_prompt for task in reached}
    instructions = Instructions(settings.instructions, by_type)
    scored = Scored(skipped=skipped)
    with Encoders(settings.model, end_token=settings.end_token, **options) as pool:

        def embed(texts: list[str], instruction: str | None) -> np.ndarray:
            return pool.encode(texts, max_tokens=settings.max_tokens, instruction=instruction)

        meta = model_meta(settings.name, _meta_revision(revision, settings), pool.dimensions)
        folder = Storage(str(settings.out)) / f"vectors/{revision}-{settings.max_tokens}"
        cache = VectorCache(folder) if revision else None  # the model of a server may change at any time
        encoder = HarnessEncoder(embed, cache, instructions, meta)
        _score(scored, encoder, reached, settings, say)
        if settings.reranker:
            _two_stages(scored, encoder, reached, settings, instructions, say)
        for line in pool.notes():
            say(f"evaluate: {line}")
    return _summary(scored, settings, baseline, say)


def _score(scored: Scored, model: Any, tasks: Sequence[Any], settings: HarnessSettings, say: _Say) -> None:
    score_tasks(scored, model, tasks, settings.out, kept=not is_endpoint(settings.model), say=say)


def _summary(scored: Scored, settings: HarnessSettings, baseline: Storage | None, say: _Say) -> dict[str, Any]:
    """What `evaluate_tasks` returns. `summary.json` is written before the comparisons, and again with them."""
    out, splits, scores = Storage(str(settings.out)), scored.splits, {}
    for model, points in splits.items():
        scores[model] = {task: next(iter(by_split.values())) for task, by_split in points.items()}
    summary: dict[str, Any] = {"scores": scores, "splits": splits, "skipped": scored.skipped, "failed": scored.failed}
    # Before the comparisons: should one fail, the scores, which took hours, are not lost.
    out.write_json("summary.json", summary | {"differences": {}, "not_compared": {}})
    summary["differences"], summary["not_compared"] = compared(splits, out, settings.name, baseline)
    out.write_json("summary.json", summary)
    for model, reasons in summary["not_compared"].items():
        for task, reason in reasons.items():
            say(f"evaluate: {model}: {task} is not compared: {reason}")
    return summary


def _meta_revision(revision: str | None, settings: HarnessSettings) -> str:
    """The revision that mteb is given: the model's files, the settings that change its vectors, and the tasks' data.

    mteb reuses the results that it has stored for a revision. Were the revision the files alone, a run with other
    lengths, instructions or data would get the scores of an earlier run.
    """
    if revision is None:
        return "endpoint"
    encoding = [settings.end_token, settings.max_tokens, dict(settings.instructions), dict(settings.data)]
    encoding_hash = hashlib.sha256(json.dumps(encoding, sort_keys=True).encode()).hexdigest()
    return f"{revision}-{encoding_hash[:8]}"


def _revision(model: str) -> str | None:
    """A hash of weights, configuration and tokenizer; None for an endpoint, whose model may change unnoticed."""
    if is_endpoint(model):
        return None
    folder = Storage(model)
    names = [name for name in folder.names() if name.endswith((".safetensors", ".json", ".txt"))]
    return streamed_digest((name, folder.filesystem.open_input_stream(folder.path(name))) for name in names)


def _two_stages(
    scored: Scored,
    encoder: HarnessEncoder,
    tasks: Sequence[Any],
    settings: HarnessSettings,
    instructions: Instructions,
    say: _Say,
) -> None:
    """Evaluate retrieval again with the reranker after the embedding model, on the tasks that have a score."""
    assert settings.reranker is not None
    retrieval = [
        task for task in tasks if hasattr(task, "k_values") and task.metadata.name in scored.splits[settings.name]
    ]
    encoder_meta = encoder.mteb_model_meta
    revision = f"{encoder_meta.revision}-{_revision(settings.reranker)}-{settings.rerank_top}"
    meta = model_meta(f"{settings.name}+reranker", revision, encoder_meta.embed_dim)
    options: dict[str, Any] = {"workers": settings.workers, "gpus_per_worker": settings.gpus_per_worker}
    with Rerankers(settings.reranker, **options) as pool:

        def judge(queries: list[str], documents: list[list[str]], instruction: str | None) -> list[np.ndarray]:
            return pool.score(queries, documents, max_tokens=2 * settings.max_tokens, instruction=instruction)

        own_left_out = [task.metadata.name for task in retrieval if task.ignore_identical_ids]
        search = TwoStageSearch(encoder, judge, instructions, settings.rerank_top, meta, own_left_out)
        _score(scored, search, retrieval, settings, say)
