"""A model becomes the current one only where it is not worse than the present one; the one before can come back.

A registry is a folder:

    versions/<id>/model/        a promoted model, copied
    versions/<id>/scores/       what `qwen3emb evaluate` had found of it
    current.json                {"id", "name", "source", "promoted", "before"}
    current                     link to versions/<id>/model, for those who serve it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwen3emb.errors import UserError
from qwen3emb.evaluate.bootstrap import paired_bootstrap

__all__ = ["Verdict", "judged", "promote", "roll_back"]

_CURRENT = "current.json"
_NEVER_COPIED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Verdict:
    """One task of the gate.

    Attributes:
        task: its name.
        gain: points of the new model over the present one.
        low: lower end of the 95 % interval; None where a task has no figures by query.
        high: upper end.
        passed: whether the new model is not worse.
    """

    task: str
    gain: float
    low: float | None
    high: float | None
    passed: bool


def judged(new: Path, present: Path, tasks: Sequence[str] = (), tolerance: float = 0.0) -> list[Verdict]:
    """Compare the scores of two evaluations, task by task.

    With figures by query a model is worse where the whole 95 % interval of the paired bootstrap lies below
    `-tolerance`; without them where its score is lower by more than `tolerance`.

    Args:
        new: results (`--out`) of the new model.
        present: of the present one.
        tasks: the gate; default all tasks of the present one's results.
        tolerance: points that may be lost.

    Raises:
        UserError: there are no results, or a task of the gate is in only one of them.
    """
    ours, theirs = _scores(new), _scores(present)
    verdicts = []
    for task in tasks or sorted(theirs):
        for scores, where in ((ours, new), (theirs, present)):
            if task not in scores:
                raise UserError(f"task {task} of the gate is not in {where}; run `qwen3emb evaluate --task {task}`")
        mine, other = _by_query(new, task), _by_query(present, task)
        if mine and other and mine.keys() & other.keys():
            gain = paired_bootstrap(mine, other)
            mean, low, high = (100 * value for value in (gain.mean, gain.low, gain.high))
            verdicts.append(Verdict(task, mean, low, high, high >= -tolerance))
        else:
            mean = ours[task] - theirs[task]
            verdicts.append(Verdict(task, mean, None, None, mean >= -tolerance))
    return verdicts


def promote(
    model: Path, scores: Path, registry: Path, tasks: Sequence[str] = (), tolerance: float = 0.0
) -> list[Verdict]:
    """Make a model the current one of a registry where every task of the gate passes; the first one always passes.

    Args:
        model: directory of the model, safetensors only.
        scores: what `qwen3emb evaluate` wrote of it.
        registry: the folder; made where it is not there.
        tasks: see `judged`.
        tolerance: see `judged`.

    Returns:
        The verdicts; where one did not pass, nothing was changed.

    Raises:
        UserError: the model or its scores are not there, it has pickled weights, or it is the current one already.
    """
    _check_model(model)
    _scores(scores)
    name = _id(model)
    current = _current(registry)
    if current and current["id"] == name:
        raise UserError(f"{model}: is the current model of {registry} already")
    verdicts: list[Verdict] = []
    if current:
        verdicts = judged(scores, registry / "versions" / current["id"] / "scores", tasks, tolerance)
        if not all(verdict.passed for verdict in verdicts):
            return verdicts
    target = registry / "versions" / name
    if not target.exists():
        partial = target.with_name(f".{name}")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed promotion left
        shutil.copytree(model, partial / "model", ignore=lambda _, names: [n for n in names if n.startswith(".")])
        for part in ("per_query", "results"):
            if (scores / part).is_dir():
                shutil.copytree(scores / part, partial / "scores" / part)
        (partial / "scores").mkdir(exist_ok=True)
        shutil.copyfile(scores / "summary.json", partial / "scores" / "summary.json")
        partial.rename(target)
    _point(registry, {"id": name, "source": str(model.resolve()), "before": current["id"] if current else None})
    return verdicts


def roll_back(registry: Path) -> str:
    """Make the model before the current one the current one again; its id.

    Raises:
        UserError: the registry has no current model, or none before it.
    """
    current = _current(registry)
    if not current:
        raise UserError(f"{registry}: no current model there; promote one first")
    before = current["before"]
    if not before or not (registry / "versions" / before).is_dir():
        raise UserError(f"{registry}: no model was current before {current['id']}")
    _point(registry, {"id": before, "source": "roll back", "before": current["id"]})
    return str(before)


def _check_model(model: Path) -> None:
    if not model.is_dir() or not any(model.glob("*.safetensors")):
        raise UserError(f"{model}: no model directory with safetensors weights")
    pickled = next((path for path in model.rglob("*") if path.suffix in _NEVER_COPIED), None)
    if pickled is not None:
        raise UserError(f"{pickled}: pickled files are not promoted, they run code where they are loaded; remove it")


def _scores(folder: Path) -> dict[str, float]:
    """task -> points of the model itself, not of its two stages."""
    try:
        scores: dict[str, dict[str, float]] = json.loads((folder / "summary.json").read_text())["scores"]
        return scores[min(scores, key=len)]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no summary.json of `qwen3emb evaluate` there") from error


def _by_query(folder: Path, task: str) -> dict[str, float]:
    found = sorted(folder.glob(f"per_query/*/{task}.json"), key=lambda path: len(path.parent.name))
    figures: dict[str, float] = json.loads(found[0].read_text()) if found else {}
    return figures


def _id(model: Path) -> str:
    """A hash of everything in the directory."""
    digest = hashlib.sha256()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        digest.update(path.relative_to(model).as_posix().encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _current(registry: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((registry / _CURRENT).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{registry / _CURRENT}: is not JSON: {error}") from error
    return content


def _point(registry: Path, content: dict[str, Any]) -> None:
    """Write `current.json` and turn the link, each in one step."""
    content |= {"promoted": datetime.now(UTC).isoformat(timespec="seconds")}
    partial, link = registry / f".{_CURRENT}", registry / ".current"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    link.unlink(missing_ok=True)
    link.symlink_to(Path("versions") / content["id"] / "model")
    os.replace(partial, registry / _CURRENT)
    os.replace(link, registry / "current")
