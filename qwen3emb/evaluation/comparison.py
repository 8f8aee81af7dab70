"""The difference of two evaluations, query by query: `qwen3emb evaluate` shows it in brackets behind the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.per_query import PER_QUERY, checked_figures, of_split
from qwen3emb.metrics.bootstrap import paired_bootstrap

__all__ = ["baseline_figures", "compared"]

_Splits = Mapping[str, Mapping[str, Mapping[str, float]]]


def compared(
    splits: _Splits, out: Storage, name: str, baseline: Storage | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gain of each model in points of nDCG@10, task by task, with a 95 % interval of the paired bootstrap.

    The embedding model is compared with the baseline, the embedding model and reranker together with the embedding
    model alone; each on the main split of the task.

    Args:
        splits: model -> task -> split -> points, the main split first.
        out: folder of the evaluation.
        name: of the embedding model.
        baseline: folder from `baseline_figures`; None compares the embedding model with nothing.

    Returns:
        ({model: {task: difference}}, {model: {task: reason why it is not compared}}); tasks without figures by query
        are in neither.
    """
    differences: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for model, tasks in splits.items():
        against = baseline if model == name else out / PER_QUERY / _folder(name)
        for task, scores in tasks.items() if against is not None else ():
            folder = out / PER_QUERY / _folder(model)
            if against is None or not folder.exists(f"{task}.json"):
                continue
            if not against.exists(f"{task}.json"):
                left_out.setdefault(model, {})[task] = f"{against.uri} has no figures of this task"
                continue
            split = next(iter(scores), None)
            try:
                figures, other_figures = (of_split(_figures(place, task), split) for place in (folder, against))
            except UserError as error:  # the scores took hours to compute: a broken file must not lose them
                left_out.setdefault(model, {})[task] = str(error)
                continue
            gain = paired_bootstrap(figures, other_figures)
            if gain is None:
                reason = f"no query of the split {split} is in {against.uri} too"
                left_out.setdefault(model, {})[task] = reason
            else:
                points = {key: round(100 * value, 2) for key, value in asdict(gain).items() if key != "queries"}
                differences.setdefault(model, {})[task] = points | {"queries": gain.queries, "sure": gain.sure}
    return differences, left_out


def _figures(place: Storage, task: str) -> dict[str, float]:
    source = f"{place.uri}/{task}.json"
    try:
        return checked_figures(place.read_json(f"{task}.json"), source)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{source}: is not JSON: {error}") from error


def _folder(model: str) -> str:
    return model.replace("/", "__")


def baseline_figures(out: Path | None) -> Storage | None:
    """The folder with the nDCG@10 of each query in the results of an earlier evaluation.

    Args:
        out: its `--out`, or None.

    Returns:
        The folder of the embedding model, also where a reranker was evaluated with it; None where `out` is None.

    Raises:
        UserError: `out` has no figures by query.
    """
    if out is None:
        return None
    figures = Storage(str(out)) / PER_QUERY
    kept = sorted({name.split("/")[0] for name in figures.names()}, key=len)
    if not kept:
        raise UserError(f"--baseline {out}: no {PER_QUERY}/ there; name the --out of another evaluation")
    return figures / kept[0]
