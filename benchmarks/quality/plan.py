"""The work of a part, in an order, as much of it as fits into an hour; what the results have is not done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality.data import SMALL
from benchmarks.quality.results import Line, Results, Scores, stamped

__all__ = ["HOUR", "Job", "Options", "Outcome", "carry_out", "said"]

HOUR = 3600.0
"""Seconds that a part may take."""


def said(text: str) -> None:
    """One line on standard error."""
    print(f"quality: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        minutes: of each training.
        seeds: of the trainings that are compared.
        trials: most trials of each side, by which its settings are chosen; 0 = take the ones it begins with.
        work: folder of models and vectors, outside of git.
        run: folder of a finished run, for the part `demo`.
        pairs: folder of synthetic pairs, for the part `low-label`.
        small: measure on a few queries and documents only, to try a part out.
    """

    minutes: float
    seeds: Sequence[int]
    trials: int
    work: Path
    run: Path
    pairs: Path
    small: bool = False

    def measured(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a training that is compared: with its minutes, and marked where it is only tried out."""
        return dict(settings) | {"minutes": self.minutes} | ({"small": True} if self.small else {})

    def split(self, name: str) -> str:
        """Name of the set that is measured on, for `data.of`."""
        return name + SMALL if self.small else name


@dataclass(frozen=True)
class Outcome:
    """What a job found; the fields are those of `Line`."""

    seconds: float
    steps: int
    scores: Scores
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One training or measurement.

    Attributes:
        part, side, settings, seed: as of `Line`.
        expected: seconds that it takes on two cores, roughly.
        work: does it.
    """

    part: str
    side: str
    settings: Mapping[str, Any]
    seed: int
    expected: float
    work: Callable[[], Outcome]

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.part}, {self.side}, seed {self.seed} ({settings})"


def carry_out(
    jobs: Callable[[], Sequence[Job]], results: Results, again: bool = False, limit: float = HOUR
) -> Sequence[Job]:
    """Do the jobs that the results lack, until the next one would not end within the limit.

    Args:
        jobs: names the jobs that are known by now; asked again after each, since trials decide on what follows.
        results: what is done is added.
        again: do what was done before this call once more.
        limit: seconds; at least one job is done.

    Returns:
        The jobs that are left.
    """
    began, first = time.monotonic(), len(results.lines)
    since, done = first if again else 0, 0
    while True:
        left = [job for job in jobs() if results.find(job.part, job.side, job.settings, job.seed, since) is None]
        if not left or (done and time.monotonic() - began + left[0].expected > limit):
            return left
        said(f"{left[0]}: some {left[0].expected / 60:.0f} min")
        job, outcome = left[0], left[0].work()
        line = Line(job.part, job.side, dict(job.settings), job.seed, outcome.seconds, outcome.steps, outcome.scores)
        results.add(stamped(Line(**{**line.__dict__, "facts": outcome.facts})))
        done += 1
