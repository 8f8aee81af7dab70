"""The main scores of mteb's tasks, task by task; a task that fails is skipped with its reason, the others go on."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.harness_model import leave_out_own
from qwen3emb.evaluation.per_query import PER_QUERY, figure_key, main_first

__all__ = ["Points", "Scored", "reached_tasks", "score_tasks"]

Points = dict[str, dict[str, float]]
"""Task -> split, the main one first -> main score in points."""

_Say = Callable[[str], None]


@dataclass
class Scored:
    """The scores of an evaluation so far.

    Attributes:
        splits: model -> its points.
        skipped: task -> one line that says why it has no score.
        failed: the skipped tasks whose evaluation raised an exception.
    """

    splits: dict[str, Points] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def reached_tasks(tasks: Sequence[Any], say: _Say) -> tuple[list[Any], dict[str, str]]:
    """Load the data of tasks.

    Returns:
        (tasks whose data could be loaded, {other task: reason}).
    """
    reached, skipped = [], {}
    for task in tasks:
        try:
            if not task.data_loaded:
                task.load_data()
            leave_out_own(task, say)
            reached.append(task)
        except Exception as error:  # each source of data raises its own kinds; the other tasks must go on
            name = task.metadata.name
            skipped[name] = f"its data cannot be reached ({_in_a_line(error)})"
            say(f"evaluate: {name} is skipped: {skipped[name]}; give --data {name}=DIR")
    return reached, skipped


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def score_tasks(scored: Scored, model: Any, tasks: Sequence[Any], out: Path, *, kept: bool, say: _Say) -> None:
    """Evaluate a model on tasks and add its main scores to `scored`.

    A task whose evaluation raises, or whose main score is no finite number, is skipped with a message.

    Args:
        scored: is added to: points, or why a task is skipped.
        model: an encoder or a search in the form that mteb calls, as those of `harness_model`.
        tasks: with their data loaded.
        out: folder of the results.
        kept: whether mteb may reuse results that it stored before; not for a server, whose answers may have changed.
        say: takes lines of progress.
    """
    import datasets

    datasets.disable_progress_bars()
    name = model.mteb_model_meta.name
    points = scored.splits.setdefault(name, {})
    for task in tasks:
        task_name = task.metadata.name
        try:
            by_split = _evaluate(model, task, out, kept)
        except Exception as error:  # models, servers and mteb raise their own kinds; other tasks keep their scores
            _skip(scored, name, task_name, f"its evaluation failed ({_in_a_line(error)})", say)
            scored.failed += [task_name] if task_name not in scored.failed else []
            continue
        not_finite = {split: value for split, value in by_split.items() if not math.isfinite(value)}
        if not by_split or next(iter(by_split)) in not_finite:
            invalid = (
                ", ".join(f"{split} {value}" for split, value in not_finite.items())
                or f"none in {list(task.eval_splits)}"
            )
            _skip(scored, name, task_name, f"its {task.metadata.main_score} is no finite number ({invalid})", say)
            continue
        points[task_name] = {split: value for split, value in by_split.items() if split not in not_finite}
        shown = ", ".join(f"{split} {value:.2f}" for split, value in by_split.items())
        say(f"evaluate: {name}: {task_name}: {task.metadata.main_score} {shown}")


def _skip(scored: Scored, model: str, task: str, reason: str, say: _Say) -> None:
    """Note why a task has no score; for the second model with the model's name, since the first has a score."""
    first = next(iter(scored.splits))
    scored.skipped[task] = reason if model == first else f"{model}: {reason}"
    say(f"evaluate: {model}: {task} is skipped: {reason}")


def _evaluate(model: Any, task: Any, out: Path, kept: bool) -> dict[str, float]:
    """Evaluate with mteb: split -> points. The figures by query are written below `out`."""
    import mteb

    name = model.mteb_model_meta.name
    predictions = out / "predictions" / name.replace("/", "__")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mteb's advice on which of its tasks to prefer
        result = mteb.evaluate(
            model,
            task,
            cache=mteb.ResultCache(out),
            overwrite_strategy="only-missing" if kept else "always",
            prediction_folder=predictions if hasattr(task, "k_values") else None,
            show_progress_bar=False,
            co2_tracker=False,
        )
    by_split = _by_split(task, result.task_results[0].scores)
    revision = model.mteb_model_meta.revision if kept else None
    _keep_per_query(task, predictions / f"{task.metadata.name}_predictions.json", out, name, revision)
    return by_split


def _by_split(task: Any, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """split -> points, the mean over subsets; those that mteb adds from its stored results are left out."""
    points = {}
    for split in main_first(task.eval_splits):
        values = [float(row["main_score"]) for row in scores.get(split, ()) if row["hf_subset"] in task.hf_subsets]
        if values:
            points[split] = round(100 * sum(values) / len(values), 3)
    return points


def _keep_per_query(task: Any, predictions: Path, out: Path, model: str, revision: str | None) -> None:
    """Write the nDCG@10 of every query, computed from the rankings that mteb wrote; remove those, they are large.

    mteb ranks only the splits that it has no stored score of. Figures of other splits that were written before stay
    if they are of the same revision of the model.
    """
    if not hasattr(task, "k_values") or not predictions.is_file():
        return
    import pytrec_eval

    content = json.loads(predictions.read_text())
    figures: dict[str, float] = {}
    for subset, splits in content.items():
        for split, run in splits.items() if subset in task.dataset else ():
            qrels = task.dataset[subset][split]["relevant_docs"]
            if task.ignore_identical_ids:  # mteb leaves them out only after it has written the ranking
                run = {query: {d: s for d, s in hits.items() if d != query} for query, hits in run.items()}
            judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
            figures |= {figure_key(subset, split, query): row["ndcg_cut_10"] for query, row in judged.items()}
    name, place = task.metadata.name, Storage(str(out)) / PER_QUERY / model.replace("/", "__")
    file, stamp = f"{name}.json", f"{name}.revision"
    same = revision is not None and place.exists(stamp) and place.read_bytes(stamp).decode() == revision
    before = place.read_json(file) if same and place.exists(file) else {}
    place.write_bytes(stamp, b"")  # killed between the two files, figures of two revisions must not be mixed
    place.write_json(file, before | figures)
    place.write_bytes(stamp, (revision or "").encode())
    predictions.unlink()
