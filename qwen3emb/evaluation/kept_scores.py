"""Read and check what `qwen3emb evaluate --out` wrote of a model: its scores, and its figures by query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import UserError
from qwen3emb.evaluation.per_query import PER_QUERY, checked_figures, finite, of_split

__all__ = ["figures_by_query", "json_mapping", "main_scores"]

_SUMMARY = "summary.json"


def json_mapping(file: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{file}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a mapping, it holds {type(content).__name__}")
    return content


def main_scores(folder: Path) -> dict[str, float]:
    """task -> points of the embedding model alone (without reranker) in the task's main split; empty without scores.

    Raises:
        UserError: `folder` has no summary of an evaluation, or a score in it is no finite number.
    """
    file = folder / _SUMMARY
    if not file.is_file():
        raise UserError(f"{folder}: no {_SUMMARY} of `qwen3emb evaluate` there")
    by_model = json_mapping(file).get("scores")
    if not isinstance(by_model, Mapping) or not all(isinstance(scores, Mapping) for scores in by_model.values()):
        raise UserError(f"{file}: no `scores` of models there; give the --out of `qwen3emb evaluate`")
    scores = by_model[min(by_model, key=len)] if by_model else {}
    for task, points in scores.items():
        if not finite(points):
            raise UserError(f"{file}: the score of task {task} is {points!r}, not a number; evaluate it again")
    return dict(scores)


def figures_by_query(folder: Path, task: str) -> dict[str, float]:
    """The nDCG@10 of each query of a task's main split, of the embedding model alone; empty where none were written.

    Raises:
        UserError: the file of figures, or the summary, is not what `qwen3emb evaluate` writes.
    """
    files = [path / f"{task}.json" for path in (folder / PER_QUERY).glob("*")]
    files = sorted((path for path in files if path.is_file()), key=lambda path: len(path.parent.name))
    if not files:
        return {}
    figures = checked_figures(json_mapping(files[0]), str(files[0]))
    by_split = json_mapping(folder / _SUMMARY).get("splits") or {}
    try:
        splits = by_split[min(by_split, key=len)].get(task) if by_split else None
        return of_split(figures, next(iter(splits), None) if splits else None)
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{folder / _SUMMARY}: `splits` is no mapping of models, tasks and splits") from error
