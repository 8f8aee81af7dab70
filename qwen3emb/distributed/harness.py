"""Evaluating any model on tasks of `mteb`, texts embedded on Ray workers, results in mteb's own format."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3emb.distributed.encoding import Encoders, Rerankers
from qwen3emb.errors import UserError
from qwen3emb.evaluate.bootstrap import paired_bootstrap
from qwen3emb.evaluate.harness_model import HarnessEncoder, Instructions, TwoStageSearch, model_meta
from qwen3emb.evaluate.vector_cache import VectorCache
from qwen3emb.model.fetch import is_endpoint
from qwen3emb.storage import Storage

__all__ = ["HarnessSettings", "evaluate_tasks"]

_Say = Callable[[str], None]
_PER_QUERY = "per_query"


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


def evaluate_tasks(tasks: Sequence[Any], settings: HarnessSettings, say: _Say) -> dict[str, Any]:
    """Evaluate a model on each task; a task whose data cannot be reached is skipped and said so.

    Writes, below `settings.out`: `results/` in mteb's layout, `per_query/` (nDCG@10 of each query of a retrieval
    task), `vectors/` (the cache) and `summary.json`.

    Args:
        tasks: as `harness_tasks.open_tasks` gives them.
        settings: the model and how.
        say: takes lines of progress.

    Returns:
        {"scores": {model: {task: main score in points}}, "skipped": {task: reason}, "differences": {...}}.

    Raises:
        UserError: a model cannot be loaded.
    """
    reached, skipped = _reached(tasks, say)
    revision = _revision(settings.model)
    options: dict[str, Any] = {"workers": settings.workers, "gpus_per_worker": settings.gpus_per_worker}
    by_type = {task.metadata.name: task.abstask_prompt for task in reached}
    instructions = Instructions(settings.instructions, by_type)
    scores: dict[str, dict[str, float]] = {}
    with Encoders(settings.model, end_token=settings.end_token, **options) as pool:

        def embed(texts: list[str], instruction: str | None) -> np.ndarray:
            return pool.encode(texts, max_tokens=settings.max_tokens, instruction=instruction)

        meta = model_meta(settings.name, revision or "endpoint", pool.dimensions)
        folder = Storage(str(settings.out)) / f"vectors/{revision}-{settings.max_tokens}"
        cache = VectorCache(folder) if revision else None  # what a server answers may change at any time
        encoder = HarnessEncoder(embed, cache, instructions, meta)
        scores[settings.name] = _scores(encoder, reached, settings, say)
        if settings.reranker:
            scores |= _two_stages(encoder, reached, settings, instructions, say)
    summary = {"scores": scores, "skipped": skipped, "differences": _differences(scores, settings)}
    Storage(str(settings.out)).write_json("summary.json", summary)
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


def _scores(model: Any, tasks: Sequence[Any], settings: HarnessSettings, say: _Say) -> dict[str, float]:
    """task -> main score in points, from mteb."""
    import datasets
    import mteb

    datasets.disable_progress_bars()
    found: dict[str, float] = {}
    name = model.mteb_model_meta.name
    predictions = settings.out / "predictions" / name.replace("/", "__")
    for task in tasks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mteb's advice on which of its tasks to prefer
            result = mteb.evaluate(
                model,
                task,
                cache=mteb.ResultCache(settings.out),
                overwrite_strategy="only-missing",
                prediction_folder=predictions if hasattr(task, "k_values") else None,
                show_progress_bar=False,
                co2_tracker=False,
            )
        task_name = task.metadata.name
        found[task_name] = round(100 * float(result.task_results[0].get_score()), 3)
        say(f"evaluate: {name}: {task_name}: {task.metadata.main_score} {found[task_name]:.2f}")
        _keep_per_query(task, predictions / f"{task_name}_predictions.json", settings.out, name)
    return found


def _two_stages(
    encoder: HarnessEncoder,
    tasks: Sequence[Any],
    settings: HarnessSettings,
    instructions: Instructions,
    say: _Say,
) -> dict[str, dict[str, float]]:
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

        search = TwoStageSearch(encoder, judge, instructions, settings.rerank_top, meta)
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
            judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
            figures |= {f"{subset}/{split}/{query}": row["ndcg_cut_10"] for query, row in judged.items()}
    Storage(str(out)).write_json(f"{_PER_QUERY}/{model.replace('/', '__')}/{task.metadata.name}.json", figures)
    predictions.unlink()


def _differences(scores: Mapping[str, Mapping[str, float]], settings: HarnessSettings) -> dict[str, Any]:
    """Each model against what it is compared with, task by task, in points of nDCG@10 with a 95 % interval.

    The two stages are compared with the first alone, the model with the one in the baseline's folder.
    """
    found: dict[str, Any] = {}
    root = Storage(str(settings.out)) / _PER_QUERY
    for name, tasks in scores.items():
        mine = root / name.replace("/", "__")
        against = root / settings.name.replace("/", "__") if name != settings.name else _baseline(settings.baseline)
        for task in tasks if against is not None else ():
            if against is not None and mine.exists(f"{task}.json") and against.exists(f"{task}.json"):
                gain = paired_bootstrap(mine.read_json(f"{task}.json"), against.read_json(f"{task}.json"))
                points = {key: round(100 * value, 2) for key, value in asdict(gain).items() if key != "queries"}
                found.setdefault(name, {})[task] = points | {"queries": gain.queries, "sure": gain.sure}
    return found


def _baseline(out: Path | None) -> Storage | None:
    """Figures by query of the model in another folder of results: of the first stage, where there are two."""
    if out is None:
        return None
    kept = sorted({name.split("/")[0] for name in (Storage(str(out)) / _PER_QUERY).names()}, key=len)
    if not kept:
        raise UserError(f"--baseline {out}: no {_PER_QUERY}/ there; name the --out of another evaluation")
    return Storage(str(out)) / _PER_QUERY / kept[0]
