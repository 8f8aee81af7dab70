"""One evaluation against another, query by query: what `qwen3emb evaluate` shows in brackets."""

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
    """Each model against what it is compared with, task by task, in points of nDCG@10 with a 95 % interval.

    The two stages are compared with the first alone, the model with the baseline; each on a task's main split.

    Args:
        splits: model -> task -> split -> points, the main split first.
        out: folder of the evaluation.
        name: of the embedding model.
        baseline: folder that `baseline_figures` found.

    Returns:
        ({model: {task: difference}}, {model: {task: why there is none}}); tasks without figures by query are left out.
    """
    differences: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for model, tasks in splits.items():
        against = baseline if model == name else out / PER_QUERY / _folder(name)
        for task, scores in tasks.items() if against is not None else ():
            mine = out / PER_QUERY / _folder(model)
            if against is None or not mine.exists(f"{task}.json"):
                continue
            if not against.exists(f"{task}.json"):
                left_out.setdefault(model, {})[task] = f"{against.uri} has no figures of this task"
                continue
            split = next(iter(scores), None)
            try:
                one, other = (of_split(_figures(place, task), split) for place in (mine, against))
            except UserError as error:  # what is compared took long: a broken file must not lose it
                left_out.setdefault(model, {})[task] = str(error)
                continue
            gain = paired_bootstrap(one, other)
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
    """Figures by query of the model in another folder of results: of the first stage, where there are two.

    Raises:
        UserError: the folder has none.
    """
    if out is None:
        return None
    figures = Storage(str(out)) / PER_QUERY
    kept = sorted({name.split("/")[0] for name in figures.names()}, key=len)
    if not kept:
        raise UserError(f"--baseline {out}: no {PER_QUERY}/ there; name the --out of another evaluation")
    return figures / kept[0]
