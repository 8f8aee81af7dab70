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
_FEWEST = 5  # queries; the bootstrap's interval of fewer is far too narrow, that of one has no width
_SHARED = 0.9  # of the queries of either side; the scores are of all of them, the interval of those in both alone
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
    `-tolerance`, undecided where less than 90 % of either's queries are in both, or only one has any; without them
    where its score is lower by at most `tolerance`, whatever the noise.

    Args:
        new: results (`--out`) of the new model.
        present: of the one that it is compared with.
        tasks: the gate; default all tasks of the results of `present`.
        tolerance: points that may be lost.
        against: what the verdicts call `present`.

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

    found = paired_bootstrap(mine, other)
    shared, most = 0 if found is None else found.queries, max(len(mine), len(other))
    if found is None or shared < max(_FEWEST, _SHARED * most):
        few = f", and fewer than {_FEWEST} are too few to tell" if shared < _FEWEST else ""
        reason = f"{shared} of {most} queries are in both results{few}; evaluate both models on the same data"
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
        tasks: the gate; default all tasks of the present model's results and of the registry's references.
        tolerance: see `judged`.

    Returns:
        The verdicts against the present model, then those against the reference of each task where that is another
        one; where one did not pass, nothing was changed.

    Raises:
        UserError: the model or its scores are not there, it has pickled weights, it is the current one already, its
            results lack a task of the gate, or there is no task to judge by.
    """
    _check_model(model)
    found = main_scores(scores)
    if not found:
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
    lost = [task for task, version in best.items() if version == name and task not in found]
    if lost:
        raise UserError(f"{scores}: lacks {', '.join(lost)}, where this model is the registry's reference; evaluate it")
    for task, score in found.items():
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
    """A task against the present model where that has it, and against its reference where that is another one.

    Of `ids`, the present model's and the new one's, the latter may be the reference too, from an earlier promotion.
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
    """A hash of everything in the directory."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return streamed_digest((path.relative_to(model).as_posix(), path.open("rb")) for path in files)


def _current(registry: Path) -> dict[str, Any] | None:
    file = registry / _CURRENT
    return json_mapping(file) if file.is_file() else None


def _point(registry: Path, content: dict[str, Any]) -> None:
    """Write `current.json` and turn the link, each in one step."""
    content |= {"promoted": datetime.now(UTC).isoformat(timespec="seconds")}
    partial, link = registry / f".{_CURRENT}", registry / ".current"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    link.unlink(missing_ok=True)
    link.symlink_to(Path("versions") / content["id"] / "model")
    os.replace(partial, registry / _CURRENT)
    os.replace(link, registry / "current")
