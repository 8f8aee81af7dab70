"""Promote a model to the current one of a registry if it is no worse than the present one; roll back to the one before.

"No worse" is a test of non-inferiority: the lower end of the 95 % interval of the gain is at least `-tolerance`. Each
promotion may lose up to the tolerance, so many small losses could add up. A registry therefore remembers for each task
the best of all promoted models (its reference), and a new model must be no worse than that one either.

A registry is a folder:

    versions/<id>/model/          a promoted model, copied
    versions/<id>/scores/         its results from `qwen3emb evaluate`
    versions/<id>/reference.json  task -> id of the best version in it at the time of this promotion
    current.json                  {"id", "source", "promoted", "before", "tolerance", "gate", "reference"}
    current                       link to versions/<id>/model, for servers
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from qwen3emb.core.errors import UserError
from qwen3emb.evaluation.kept_scores import figures_by_query, json_mapping, main_scores
from qwen3emb.model.identity import streamed_digest

__all__ = ["TOLERANCE", "Verdict", "judged", "promote", "roll_back"]

TOLERANCE = 1.0
"""Points that may be lost in a task. With 0 a model as good as the present one would hardly ever pass."""

_CURRENT, _REFERENCE = "current.json", "reference.json"
_NEVER_COPIED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_FEWEST = 5  # queries; the bootstrap's interval is far too narrow for fewer, and has no width for one
_SHARED = 0.9  # share of each side's queries: the scores average all of them, the interval only those in both
_ROUNDING = 1e-9

Outcome = Literal["passed", "worse", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The comparison of the new model with another one in one task of the gate.

    Attributes:
        task: its name.
        against: the model that it is compared with: `present`, or `reference` and its id.
        gain: points of the new model minus those of the other one.
        low: lower end of the 95 % interval; None where there is none.
        high: upper end.
        queries: count of queries with figures of both models; 0 where a task has no figures by query.
        tolerance: points that may be lost.
        outcome: `passed`: it loses no more than the tolerance; `worse`: it loses more; `undecided`: it may be either.
        reason: of the outcome, in a few words.
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
        """Whether this comparison allows the promotion."""
        return self.outcome == "passed"


def judged(
    new: Path, present: Path, tasks: Sequence[str] = (), tolerance: float = TOLERANCE, against: str = "present"
) -> list[Verdict]:
    """Compare the scores of two evaluations, task by task.

    With figures by query a task passes where the lower end of the 95 % interval of the paired bootstrap is at least
    `-tolerance`; it is undecided where fewer than 5 queries or less than 90 % of either side's are in both, or only one
    side has figures by query. Where neither has any, it passes if its score is lower by at most `tolerance`; that is no
    test of significance.

    Args:
        new: results (`--out` of `qwen3emb evaluate`) of the new model.
        present: those of the model that it is compared with.
        tasks: the gate; default all tasks of the results of `present`.
        tolerance: points that may be lost.
        against: name of the other model in the verdicts.

    Returns:
        A verdict for each task.

    Raises:
        UserError: there are no results, or a task of the gate is in only one of them.
    """
    ours, theirs = main_scores(new), main_scores(present)
    verdicts = []
    for task in tasks or sorted(theirs):
        for scores, where in ((ours, new), (theirs, present)):
            if task not in scores:
                raise UserError(f"task {task} of the gate is not in {where}; run `qwen3emb evaluate --task {task}`")
        mine, other = figures_by_query(new, task), figures_by_query(present, task)
        if mine and other:
            verdicts.append(_by_interval(task, against, mine, other, tolerance))
            continue
        gain = ours[task] - theirs[task]
        outcome: Outcome = "passed" if gain >= -tolerance - _ROUNDING else "worse"
        reason = f"no figures by query, so no interval; tolerance {tolerance:g}"
        if mine or other:
            side, folder = (f"the {against} model", present) if mine else ("the new model", new)
            outcome = "undecided"
            reason = f"{side} has no figures by query ({folder}); evaluate both models again on the same data"
        verdicts.append(Verdict(task, against, gain, None, None, 0, tolerance, outcome, reason))
    return verdicts


def _by_interval(
    task: str, against: str, mine: Mapping[str, float], other: Mapping[str, float], tolerance: float
) -> Verdict:
    """The verdict of a task with figures by query."""
    from qwen3emb.metrics.bootstrap import paired_bootstrap  # numpy; the command line reads TOLERANCE from here

    difference = paired_bootstrap(mine, other)
    shared, most = 0 if difference is None else difference.queries, max(len(mine), len(other))
    if difference is None or shared < max(_FEWEST, _SHARED * most):
        few = f", and fewer than {_FEWEST} are too few to tell" if shared < _FEWEST else ""
        reason = f"{shared} of {most} queries are in both results{few}; evaluate both models on the same data"
        gain = 100 * (sum(mine.values()) / len(mine) - sum(other.values()) / len(other))
        return Verdict(task, against, gain, None, None, shared, tolerance, "undecided", reason)
    gain, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    outcome: Outcome = "undecided"
    reason = f"interval of +-{(high - low) / 2:.2f} with {difference.queries} queries, tolerance {tolerance:g}"
    if low >= -tolerance - _ROUNDING:
        outcome = "passed"
    elif high < -tolerance:
        outcome = "worse"
    else:
        reason += "; more queries or a larger tolerance decide"
    return Verdict(task, against, gain, low, high, difference.queries, tolerance, outcome, reason)


def promote(
    model: Path, scores: Path, registry: Path, tasks: Sequence[str] = (), tolerance: float = TOLERANCE
) -> list[Verdict]:
    """Make a model the current one of a registry if every task of the gate passes; the first model always passes.

    Args:
        model: directory of the model, safetensors only.
        scores: its results from `qwen3emb evaluate`.
        registry: the folder; created if it does not exist.
        tasks: the gate; default all tasks of the present model's results and of the registry's references.
        tolerance: see `judged`.

    Returns:
        The verdicts against the present model, then those against the reference of each task where that is another
        model. If one of them did not pass, the registry was not changed.

    Raises:
        UserError: the model or its scores are missing, it has pickled weights, it is the current one already, its
            results lack a task of the gate, or there is no task to compare in.
    """
    _check_model(model)
    points = main_scores(scores)
    if not points:
        raise UserError(f"{scores}: holds no score, so nothing tells whether the model may be promoted; evaluate it")
    name = _id(model)
    current = _current(registry)
    if current and current["id"] == name:
        raise UserError(f"{model}: is the current model of {registry} already")
    verdicts: list[Verdict] = []
    best: dict[str, str] = {}
    if current:
        present = str(current["id"])
        known = main_scores(_scores_of(registry, present))
        best = dict.fromkeys(known, present) | current.get("reference", {})
        for task in tasks or sorted(best):
            verdicts += _of_task(task, scores, registry, (present, name), known, best, tolerance)
        if not verdicts:
            raise UserError(f"{registry}: no result to compare with there; promote into another registry")
        verdicts.sort(key=lambda verdict: verdict.against != "present")
        if not all(verdict.passed for verdict in verdicts):
            return verdicts
    lost = [task for task, version in best.items() if version == name and task not in points]
    if lost:
        raise UserError(f"{scores}: lacks {', '.join(lost)}, where this model is the registry's reference; evaluate it")
    for task, score in points.items():
        if task not in best or score > main_scores(_scores_of(registry, best[task]))[task]:
            best[task] = name
    _keep(model, scores, registry / "versions" / name, best)
    content = {"id": name, "source": str(model.resolve()), "before": current["id"] if current else None}
    gate = [asdict(verdict) for verdict in verdicts]
    _point(registry, content | {"tolerance": tolerance, "gate": gate, "reference": best})
    return verdicts


def _of_task(
    task: str,
    scores: Path,
    registry: Path,
    ids: tuple[str, str],
    known: Mapping[str, float],
    best: Mapping[str, str],
    tolerance: float,
) -> list[Verdict]:
    """The verdicts of one task: against the present model if that has a score, and against another reference.

    Args:
        task: name.
        scores: results of the new model.
        registry: the folder.
        ids: of the present and of the new model; the new one may be the reference already, from an earlier promotion.
        known: task -> points of the present model.
        best: task -> id of the reference.
        tolerance: points that may be lost.
    """
    present = ids[0]
    reference = best.get(task, present)
    verdicts = []
    if task in known or reference == present:
        verdicts = judged(scores, _scores_of(registry, present), [task], tolerance)
    if reference not in ids or not verdicts:
        verdicts += judged(scores, _scores_of(registry, reference), [task], tolerance, f"reference {reference}")
    return verdicts


def _scores_of(registry: Path, name: str) -> Path:
    return registry / "versions" / name / "scores"


def _keep(model: Path, scores: Path, target: Path, best: Mapping[str, str]) -> None:
    """Copy the model and its results into the registry; of a model that was promoted before only the results."""
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
    """Make the model before the current one the current one again, and return its id.

    Raises:
        UserError: the registry has no current model, or none before it.
    """
    current = _current(registry)
    if not current:
        raise UserError(f"{registry}: no current model there; promote one first")
    before = current["before"]
    if not before or not (registry / "versions" / before).is_dir():
        raise UserError(f"{registry}: no model was current before {current['id']}")
    # References that the withdrawn model set are withdrawn too: its scores may be the reason for the rollback.
    kept = registry / "versions" / before / _REFERENCE
    best = json_mapping(kept) if kept.is_file() else {}
    _point(registry, {"id": before, "source": "roll back", "before": current["id"], "reference": best})
    return str(before)


def _check_model(model: Path) -> None:
    if not model.is_dir() or not any(model.glob("*.safetensors")):
        raise UserError(f"{model}: no model directory with safetensors weights")
    pickled = next((path for path in model.rglob("*") if path.suffix in _NEVER_COPIED), None)
    if pickled is not None:
        raise UserError(f"{pickled}: pickled files are not promoted, they run code where they are loaded; remove it")


def _id(model: Path) -> str:
    """A hash of all files in the directory, the model's id."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return streamed_digest((path.relative_to(model).as_posix(), path.open("rb")) for path in files)


def _current(registry: Path) -> dict[str, Any] | None:
    file = registry / _CURRENT
    return json_mapping(file) if file.is_file() else None


def _point(registry: Path, content: dict[str, Any]) -> None:
    """Write `current.json` and move the link, each atomically."""
    content |= {"promoted": datetime.now(UTC).isoformat(timespec="seconds")}
    partial, link = registry / f".{_CURRENT}", registry / ".current"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    link.unlink(missing_ok=True)
    link.symlink_to(Path("versions") / content["id"] / "model")
    os.replace(partial, registry / _CURRENT)
    os.replace(link, registry / "current")
