"""A model becomes the current one only where it is shown to be no worse; the one before can come back.

No worse is non-inferior: the lower end of the 95 % interval of its gain is at least `-tolerance`. Each promotion may
lose up to the tolerance, so many of them could slide down step by step. A registry therefore remembers, task by task,
the best of all that were promoted (its reference), and a new model must be no worse than that one either.

A registry is a folder:

    versions/<id>/model/          a promoted model, copied
    versions/<id>/scores/         what `qwen3emb evaluate` had found of it
    versions/<id>/reference.json  task -> the version that was best in it once this one was promoted
    current.json                  {"id", "source", "promoted", "before", "tolerance", "gate", "reference"}
    current                       link to versions/<id>/model, for those who serve it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from qwen3emb.errors import UserError
from qwen3emb.evaluate.per_query import of_split

__all__ = ["TOLERANCE", "Verdict", "judged", "promote", "roll_back"]

TOLERANCE = 1.0
"""Points that may be lost in a task. With 0 a model as good as the present one would hardly ever pass."""

_CURRENT, _REFERENCE = "current.json", "reference.json"
_NEVER_COPIED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_FEWEST = 5  # queries; the bootstrap's interval of fewer is far too narrow, that of one has no width
_ROUNDING = 1e-9

Outcome = Literal["passed", "worse", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """One task of the gate.

    Attributes:
        task: its name.
        against: the model that it is compared with: `present`, or `reference` and its id.
        gain: points of the new model over that one.
        low: lower end of the 95 % interval; None where there is none.
        high: upper end.
        queries: that both have figures of; 0 where a task has no figures by query.
        tolerance: points that may be lost.
        outcome: `passed`: it loses no more than that; `worse`: it loses more; `undecided`: the interval holds both.
        reason: why, in a few words.
    """

    task: str
    against: str
    gain: float
    low: float | None
    high: float | None
    queries: int
    tolerance: float
    outcome: Outcome
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the model may be promoted as far as this task goes."""
        return self.outcome == "passed"


def judged(
    new: Path, present: Path, tasks: Sequence[str] = (), tolerance: float = TOLERANCE, against: str = "present"
) -> list[Verdict]:
    """Compare the scores of two evaluations, task by task.

    With figures by query a task passes where the lower end of the 95 % interval of the paired bootstrap is at least
    `-tolerance`; without them where its score is lower by at most `tolerance`, whatever the noise.

    Args:
        new: results (`--out`) of the new model.
        present: of the one that it is compared with.
        tasks: the gate; default all tasks of the results of `present`.
        tolerance: points that may be lost.
        against: what the verdicts call `present`.

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
        if mine and other:
            verdicts.append(_by_interval(task, against, mine, other, tolerance))
        else:
            gain = ours[task] - theirs[task]
            outcome: Outcome = "passed" if gain >= -tolerance - _ROUNDING else "worse"
            reason = f"no figures by query, so no interval; tolerance {tolerance:g}"
            verdicts.append(Verdict(task, against, gain, None, None, 0, tolerance, outcome, reason))
    return verdicts


def _by_interval(
    task: str, against: str, mine: Mapping[str, float], other: Mapping[str, float], tolerance: float
) -> Verdict:
    """The verdict of a task with figures by query."""
    from qwen3emb.evaluate.bootstrap import paired_bootstrap  # numpy; the command line reads TOLERANCE from here

    found = paired_bootstrap(mine, other)
    if found is None or found.queries < _FEWEST:
        shared = 0 if found is None else found.queries
        reason = f"{shared} queries are in both results, too few to tell; evaluate both models on the same data"
        gain = 100 * (sum(mine.values()) / len(mine) - sum(other.values()) / len(other))
        return Verdict(task, against, gain, None, None, shared, tolerance, "undecided", reason)
    gain, low, high = (100 * value for value in (found.mean, found.low, found.high))
    outcome: Outcome = "undecided"
    reason = f"interval of +-{(high - low) / 2:.2f} with {found.queries} queries, tolerance {tolerance:g}"
    if low >= -tolerance - _ROUNDING:
        outcome = "passed"
    elif high < -tolerance:
        outcome = "worse"
    else:
        reason += "; more queries or a larger tolerance decide"
    return Verdict(task, against, gain, low, high, found.queries, tolerance, outcome, reason)


def promote(
    model: Path, scores: Path, registry: Path, tasks: Sequence[str] = (), tolerance: float = TOLERANCE
) -> list[Verdict]:
    """Make a model the current one of a registry where every task of the gate passes; the first one always passes.

    Args:
        model: directory of the model, safetensors only.
        scores: what `qwen3emb evaluate` wrote of it.
        registry: the folder; made where it is not there.
        tasks: the gate; default all tasks of the present model's results.
        tolerance: see `judged`.

    Returns:
        The verdicts against the present model, then those against the reference of each task where that is another
        one; where one did not pass, nothing was changed.

    Raises:
        UserError: the model or its scores are not there, it has pickled weights, or it is the current one already.
    """
    _check_model(model)
    found = _scores(scores)
    name = _id(model)
    current = _current(registry)
    if current and current["id"] == name:
        raise UserError(f"{model}: is the current model of {registry} already")
    verdicts: list[Verdict] = []
    best: dict[str, str] = {}
    if current:
        present = str(current["id"])
        best = dict.fromkeys(_scores(_scores_of(registry, present)), present) | current.get("reference", {})
        verdicts = judged(scores, _scores_of(registry, present), tasks, tolerance)
        for task in [verdict.task for verdict in verdicts]:
            if best[task] not in (present, name):
                place = _scores_of(registry, best[task])
                verdicts += judged(scores, place, [task], tolerance, f"reference {best[task]}")
        if not all(verdict.passed for verdict in verdicts):
            return verdicts
    for task, score in found.items():
        if task not in best or score > _scores(_scores_of(registry, best[task]))[task]:
            best[task] = name
    _keep(model, scores, registry / "versions" / name, best)
    content = {"id": name, "source": str(model.resolve()), "before": current["id"] if current else None}
    gate = [asdict(verdict) for verdict in verdicts]
    _point(registry, content | {"tolerance": tolerance, "gate": gate, "reference": best})
    return verdicts


def _scores_of(registry: Path, name: str) -> Path:
    return registry / "versions" / name / "scores"


def _keep(model: Path, scores: Path, target: Path, best: Mapping[str, str]) -> None:
    """Copy the model and what was found of it into the registry, the latter anew where it was promoted before."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed promotion left
    for part in ("per_query", "results"):
        if (scores / part).is_dir():
            shutil.copytree(scores / part, partial / "scores" / part)
    (partial / "scores").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scores / "summary.json", partial / "scores" / "summary.json")
    (partial / _REFERENCE).write_text(json.dumps(best, indent=2) + "\n")
    if target.exists():
        shutil.rmtree(target / "scores", ignore_errors=True)
        for part in ("scores", _REFERENCE):
            os.replace(partial / part, target / part)
        partial.rmdir()
    else:
        shutil.copytree(model, partial / "model", ignore=lambda _, names: [n for n in names if n.startswith(".")])
        partial.rename(target)


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
    # A reference that was set by the model that goes, goes with it: it may be the reason for the way back.
    kept = registry / "versions" / before / _REFERENCE
    best = json.loads(kept.read_text()) if kept.is_file() else {}
    _point(registry, {"id": before, "source": "roll back", "before": current["id"], "reference": best})
    return str(before)


def _check_model(model: Path) -> None:
    if not model.is_dir() or not any(model.glob("*.safetensors")):
        raise UserError(f"{model}: no model directory with safetensors weights")
    pickled = next((path for path in model.rglob("*") if path.suffix in _NEVER_COPIED), None)
    if pickled is not None:
        raise UserError(f"{pickled}: pickled files are not promoted, they run code where they are loaded; remove it")


def _scores(folder: Path) -> dict[str, float]:
    """task -> points of the model itself, not of its two stages, in the task's main split."""
    try:
        scores: dict[str, dict[str, float]] = json.loads((folder / "summary.json").read_text())["scores"]
        return scores[min(scores, key=len)]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no summary.json of `qwen3emb evaluate` there") from error


def _by_query(folder: Path, task: str) -> dict[str, float]:
    """Figures by query of the model itself in the main split, whose points `scores` holds."""
    found = sorted(folder.glob(f"per_query/*/{task}.json"), key=lambda path: len(path.parent.name))
    figures: dict[str, float] = json.loads(found[0].read_text()) if found else {}
    by_split = json.loads((folder / "summary.json").read_text()).get("splits", {})
    splits = by_split[min(by_split, key=len)].get(task) if by_split else None
    return of_split(figures, next(iter(splits), None) if splits else None)


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
