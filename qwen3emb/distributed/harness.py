"""Evaluating any model on tasks of `mteb`, texts embedded on Ray workers, results in mteb's own format."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3emb.distributed.encoding import Encoders, Rerankers
from qwen3emb.evaluate.comparison import baseline_figures, compared
from qwen3emb.evaluate.harness_model import HarnessEncoder, Instructions, TwoStageSearch, leave_out_own, model_meta
from qwen3emb.evaluate.per_query import PER_QUERY, figure_key, main_first
from qwen3emb.evaluate.vector_cache import VectorCache
from qwen3emb.model.fetch import is_endpoint
from qwen3emb.storage import Storage

__all__ = ["HarnessSettings", "evaluate_tasks"]

_Say = Callable[[str], None]
_Points = dict[str, dict[str, float]]
"""Task -> split, the main one first -> main score in points."""


@dataclass(frozen=True)
class HarnessSettings:
    """What is evaluated and how.

    Attributes:
        model: directory or address of the embedding model.
        out: folder of the results.
        name: of the model in the results, `organisation/model`.
        end_token: for directories that are not ours.
        max_tokens: longer texts lose their end.
        workers: Ray workers that embed.
        gpus_per_worker: GPUs of each.
        reranker: directory of a reranker for the retrieval tasks; None = one stage only.
        rerank_top: documents it reads of each query.
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
    """Evaluate a model on each task; a task whose data cannot be reached is skipped and said so.

    Writes, below `settings.out`: `results/` in mteb's layout, `per_query/` (nDCG@10 of each query of a retrieval
    task), `vectors/` (the cache) and `summary.json`.

    Args:
        tasks: as `harness_tasks.open_tasks` gives them.
        settings: the model and how.
        say: takes lines of progress.

    Returns:
        {"scores": {model: {task: main score of the main split, in points}},
        "splits": {model: {task: {split: points, the main one first}}},
        "skipped": {task: reason},
        "differences": {model: {task: of the main split}},
        "not_compared": {model: {task: reason}}}.

    Raises:
        UserError: a model cannot be loaded, or the baseline holds no results.
    """
    baseline = baseline_figures(settings.baseline)  # before hours of work are lost to a mistyped folder
    reached, skipped = _reached(tasks, say)
    for task in reached:
        leave_out_own(task, say)
    revision = _revision(settings.model)
    options: dict[str, Any] = {"workers": settings.workers, "gpus_per_worker": settings.gpus_per_worker}
    by_type = {task.metadata.name: task.abstask_prompt for task in reached}
    instructions = Instructions(settings.instructions, by_type)
    splits: dict[str, _Points] = {}
    with Encoders(settings.model, end_token=settings.end_token, **options) as pool:

        def embed(texts: list[str], instruction: str | None) -> np.ndarray:
            return pool.encode(texts, max_tokens=settings.max_tokens, instruction=instruction)

        meta = model_meta(settings.name, _asked(revision, settings), pool.dimensions)
        folder = Storage(str(settings.out)) / f"vectors/{revision}-{settings.max_tokens}"
        cache = VectorCache(folder) if revision else None  # what a server answers may change at any time
        encoder = HarnessEncoder(embed, cache, instructions, meta)
        splits[settings.name] = _scores(encoder, reached, settings, say)
        if settings.reranker:
            splits |= _two_stages(encoder, reached, settings, instructions, say)
        for line in pool.notes():
            say(f"evaluate: {line}")
    return _summary(splits, skipped, settings, baseline, say)


def _summary(
    splits: dict[str, _Points],
    skipped: dict[str, str],
    settings: HarnessSettings,
    baseline: Storage | None,
    say: _Say,
) -> dict[str, Any]:
    """What `evaluate_tasks` returns; `summary.json` is written before the comparisons, and with them."""
    out, scores = Storage(str(settings.out)), {}
    for model, points in splits.items():
        scores[model] = {task: next(iter(found.values())) for task, found in points.items()}
    summary: dict[str, Any] = {"scores": scores, "splits": splits, "skipped": skipped}
    out.write_json("summary.json", summary | {"differences": {}, "not_compared": {}})  # first what took long
    summary["differences"], summary["not_compared"] = compared(splits, out, settings.name, baseline)
    out.write_json("summary.json", summary)
    for model, reasons in summary["not_compared"].items():
        for task, reason in reasons.items():
            say(f"evaluate: {model}: {task} is not compared: {reason}")
    return summary


def _reached(tasks: Sequence[Any], say: _Say) -> tuple[list[Any], dict[str, str]]:
    """Tasks with their data loaded, and why others have none."""
    reached, skipped = [], {}
    for task in tasks:
        try:
            if not task.data_loaded:
                task.load_data()
            reached.append(task)
        except Exception as error:  # each source raises its own; a task less must not end the others
            name, lines = task.metadata.name, str(error).strip().splitlines()
            skipped[name] = f"its data cannot be reached ({type(error).__name__}: {lines[0] if lines else ''})"
            say(f"evaluate: {name} is skipped: {skipped[name]}; give --data {name}=DIR")
    return reached, skipped


def _asked(revision: str | None, settings: HarnessSettings) -> str:
    """What mteb takes for the model's revision: its files, and how and on what it is asked.

    mteb takes results that it has kept of a revision for those of this run. With the files alone, other lengths,
    instructions or data would get the scores of those before them.
    """
    if revision is None:
        return "endpoint"
    how = [settings.end_token, settings.max_tokens, dict(settings.instructions), dict(settings.data)]
    told = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    return f"{revision}-{told[:8]}"


def _revision(model: str) -> str | None:
    """A hash of the weights and what decides how they are read; None of an endpoint, which can change unseen."""
    if is_endpoint(model):
        return None
    folder, digest = Storage(model), hashlib.sha256()
    for name in folder.names():
        if name.endswith((".safetensors", ".json", ".txt")):
            digest.update(name.encode())
            with folder.filesystem.open_input_stream(folder.path(name)) as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _scores(model: Any, tasks: Sequence[Any], settings: HarnessSettings, say: _Say) -> _Points:
    """The main scores of each task, from mteb."""
    import datasets
    import mteb

    datasets.disable_progress_bars()
    found: _Points = {}
    name = model.mteb_model_meta.name
    predictions = settings.out / "predictions" / name.replace("/", "__")
    for task in tasks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mteb's advice on which of its tasks to prefer
            result = mteb.evaluate(
                model,
                task,
                cache=mteb.ResultCache(settings.out),
                # a server may answer differently than when its results were kept
                overwrite_strategy="always" if is_endpoint(settings.model) else "only-missing",
                prediction_folder=predictions if hasattr(task, "k_values") else None,
                show_progress_bar=False,
                co2_tracker=False,
            )
        task_name = task.metadata.name
        found[task_name] = _by_split(task, result.task_results[0].scores)
        assert found[task_name], f"mteb gave no score of {task_name} in {list(task.eval_splits)}"
        shown = ", ".join(f"{split} {points:.2f}" for split, points in found[task_name].items())
        say(f"evaluate: {name}: {task_name}: {task.metadata.main_score} {shown}")
        _keep_per_query(task, predictions / f"{task_name}_predictions.json", settings.out, name)
    return found


def _by_split(task: Any, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """split -> points, the mean over the task's subsets; of what is asked for, since mteb adds what it has kept."""
    found = {}
    for split in main_first(task.eval_splits):
        values = [float(row["main_score"]) for row in scores.get(split, ()) if row["hf_subset"] in task.hf_subsets]
        if values:
            found[split] = round(100 * sum(values) / len(values), 3)
    return found


def _two_stages(
    encoder: HarnessEncoder,
    tasks: Sequence[Any],
    settings: HarnessSettings,
    instructions: Instructions,
    say: _Say,
) -> dict[str, _Points]:
    """The retrieval tasks once more, with the reranker behind the embedding model."""
    assert settings.reranker is not None
    retrieval = [task for task in tasks if hasattr(task, "k_values")]
    own = encoder.mteb_model_meta
    revision = f"{own.revision}-{_revision(settings.reranker)}-{settings.rerank_top}"
    meta = model_meta(f"{settings.name}+reranker", revision, own.embed_dim)
    options: dict[str, Any] = {"workers": settings.workers, "gpus_per_worker": settings.gpus_per_worker}
    with Rerankers(settings.reranker, **options) as pool:

        def judge(queries: list[str], documents: list[list[str]], instruction: str | None) -> list[np.ndarray]:
            return pool.score(queries, documents, max_tokens=2 * settings.max_tokens, instruction=instruction)

        own = [task.metadata.name for task in retrieval if task.ignore_identical_ids]
        search = TwoStageSearch(encoder, judge, instructions, settings.rerank_top, meta, own)
        return {meta.name: _scores(search, retrieval, settings, say)}


def _keep_per_query(task: Any, predictions: Path, out: Path, model: str) -> None:
    """nDCG@10 of every query from the ranking that mteb wrote, which is then removed: it is large."""
    if not hasattr(task, "k_values") or not predictions.is_file():
        return
    import pytrec_eval

    content = json.loads(predictions.read_text())
    figures: dict[str, float] = {}
    for subset, splits in content.items():
        for split, run in splits.items() if subset in task.dataset else ():
            qrels = task.dataset[subset][split]["relevant_docs"]
            if task.ignore_identical_ids:  # mteb writes the ranking before it leaves them out
                run = {query: {d: s for d, s in hits.items() if d != query} for query, hits in run.items()}
            judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
            figures |= {figure_key(subset, split, query): row["ndcg_cut_10"] for query, row in judged.items()}
    Storage(str(out)).write_json(f"{PER_QUERY}/{model.replace('/', '__')}/{task.metadata.name}.json", figures)
    predictions.unlink()
