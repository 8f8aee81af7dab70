"""Which settings a side is compared with: the best of a grid of short trainings on the dev split, never on the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from benchmarks.quality.results import Line, mean

__all__ = ["Stage", "choose", "grid", "minutes_of_trial"]

Settings = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Trials around the best settings so far.

    Attributes:
        changes: each is laid over the best settings; {} is those themselves.
        by: what is best: nDCG@10 on the dev split, or steps per second where the result is the same.
    """

    changes: Sequence[Mapping[str, Any]]
    by: Literal["score", "speed"] = "score"


def grid(**values: Sequence[Any]) -> list[Settings]:
    """All combinations."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def minutes_of_trial(minutes: float) -> float:
    """Three tenths of what the trainings take that are compared: 3 of 10 minutes.

    Ours first pushes all vectors together, and they part only after some 15 steps, which take two minutes.
    """
    return 0.3 * minutes


def choose(
    stages: Sequence[Stage], start: Mapping[str, Any], trial: Callable[[Settings], Line | None], most: int
) -> tuple[list[Settings], Settings | None]:
    """The trials to make, and the settings that they choose.

    Args:
        stages: in their order; a stage begins where the one before chose.
        start: the settings before the first stage.
        trial: the line of a trial that is done.
        most: trials at most; the stages end there, with the best of what was tried.

    Returns:
        The settings of all trials that can be named now, each once; and what they choose, None while some are missing.
    """
    best: Settings = dict(start)
    named: list[Settings] = []
    for stage in stages:
        points: list[Settings] = []
        for change in stage.changes:
            point = best | dict(change)
            if point not in points and (point in named or len(named) < most):
                points.append(point)
                named += [point] if point not in named else []
        tried = [(point, trial(point)) for point in points]
        if any(line is None for _, line in tried):
            return named, None
        if tried:
            best = max(tried, key=lambda one: _figure(one[1], stage.by))[0]
    return named, best


def _figure(line: Line | None, by: str) -> float:
    assert line is not None
    return line.facts["steps_per_second"] if by == "speed" else mean(line.scores["dev"])
