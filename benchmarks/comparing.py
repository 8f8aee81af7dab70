"""Run our side and a peer's alternately, compare medians, say what held.

A figure of one side alone means little on a shared machine, so both sides take turns within one run, and only
the ratio counts. A benchmark is a script `benchmarks/NAME.py`:

    report([compare(Comparison("encode.tokens_per_s", must=1.0, aim=1.3), ours, theirs)])
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Comparison", "Difference", "Outcome", "compare", "peak_bytes", "report", "seconds"]


@dataclass(frozen=True)
class Comparison:
    """What is compared and how much better ours has to be.

    Attributes:
        id: name of the comparison, `bench.figure`.
        must: smallest ratio that passes; below it the benchmark fails.
        aim: ratio we work towards; printed, never fails.
        higher_is_better: true for throughput and quality, false for seconds and bytes.
    """

    id: str
    must: float
    aim: float
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.must <= 0 or self.aim < self.must:
            raise ValueError(f"{self.id}: expected 0 < must <= aim, found must {self.must}, aim {self.aim}")


@dataclass(frozen=True)
class Outcome:
    """Medians of both sides for one comparison."""

    comparison: Comparison
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """How many times better ours is; above 1 is better whichever way the figure points.

        Two zeros are equal; one zero is infinitely better or worse.
        """
        better, worse = (self.ours, self.theirs) if self.comparison.higher_is_better else (self.theirs, self.ours)
        if worse == 0:
            return 1.0 if better == 0 else float("inf")
        return better / worse

    @property
    def held(self) -> bool:
        """True where the ratio reaches `must`; a figure that is not a number never does."""
        return self.ratio >= self.comparison.must

    def line(self) -> str:
        """The outcome as one line of JSON, figures to four digits."""
        figures = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratio}
        record = {key: float(f"{value:.4g}") for key, value in figures.items()}
        return json.dumps(
            {"id": self.comparison.id, **record, "must": self.comparison.must, "aim": self.comparison.aim}
        )


@dataclass(frozen=True)
class Difference:
    """How much better ours is where a ratio says little: scores, in points.

    Attributes:
        id: name of the comparison, `bench.figure`.
        must: smallest difference that passes.
        aim: difference we work towards.
        ours, theirs: the scores, higher is better.
    """

    id: str
    must: float
    aim: float
    ours: float
    theirs: float

    @property
    def held(self) -> bool:
        """True where the difference reaches `must`; a figure that is not a number never does."""
        return self.ours - self.theirs >= self.must

    def line(self) -> str:
        """The difference as one line of JSON, figures to three decimals."""
        figures = {"ours": self.ours, "theirs": self.theirs, "difference": self.ours - self.theirs}
        record = {key: round(value, 3) for key, value in figures.items()}
        return json.dumps({"id": self.id, **record, "must": self.must, "aim": self.aim})


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def compare(
    comparison: Comparison,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    rounds: int = 5,
    warm_up: int = 1,
) -> Outcome:
    """Call both sides alternately and take the median of what each returns.

    The side that goes first changes every round, so that a machine that slows down favours neither.

    Args:
        comparison: what the returned figures mean.
        ours: one measurement of our side.
        theirs: one measurement of the peer.
        rounds: measurements per side.
        warm_up: calls per side before, whose figures are dropped.
    """
    if rounds < 1:
        raise ValueError(f"{comparison.id}: rounds must be at least 1, found {rounds}")
    kept: dict[str, list[float]] = {"ours": [], "theirs": []}
    sides = [("ours", ours), ("theirs", theirs)]
    for turn in range(-warm_up, rounds):
        for name, side in sides if turn % 2 == 0 else reversed(sides):
            figure = side()
            if turn >= 0:
                kept[name].append(figure)
        print(f"{comparison.id}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return Outcome(comparison, statistics.median(kept["ours"]), statistics.median(kept["theirs"]))


def report(outcomes: Sequence[Outcome | Difference]) -> int:
    """Print one JSON line per outcome and a last line `held n/m`; the exit code, 1 where a must fails."""
    for outcome in outcomes:
        print(outcome.line(), flush=True)
    held = sum(outcome.held for outcome in outcomes)
    print(f"held {held}/{len(outcomes)}", flush=True)
    return 0 if held == len(outcomes) else 1


def peak_bytes() -> int:
    """Peak resident memory of this process until now; `ru_maxrss` would begin with that of the process it came from."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
