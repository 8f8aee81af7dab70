"""Finished trainings and measurements, one line of JSON each, in a file that is committed.

A line holds what was run (part, side, settings, seed), with what (version, commit, cores), and what came out (seconds,
steps, nDCG@10 by query). Lines are only added, so that seeds add up over runs; of two of a kind the later counts.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qwen3emb import __version__
from qwen3emb.core.cores import usable_cores

__all__ = ["FILE", "OURS", "THEIRS", "Line", "Results", "mean", "version_of"]

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "benchmarks" / "results" / "quality.jsonl"
OURS, THEIRS = "qwen3emb", "sentence-transformers"

Scores = Mapping[str, Mapping[str, float]]
"""Name of what was ranked, e.g. `test` -> query -> nDCG@10."""


def version_of(side: str) -> str:
    """The version that a side's figures depend on: the peer's do not change with ours."""
    return version(THEIRS) if side == THEIRS else __version__


@dataclass(frozen=True)
class Line:
    """One finished training or measurement.

    Attributes:
        part: of the benchmark.
        side: who did it, or what it is a measurement of.
        settings: all that makes it different from another of the same part and side.
        seed: of the training.
        seconds: of the training, or of the measurement where nothing was trained.
        steps: of the optimizer; 0 where nothing was trained.
        scores: nDCG@10 by query.
        facts: further figures, by name.
        version: of the side.
        commit: of the repository.
        cores: that could be used.
    """

    part: str
    side: str
    settings: dict[str, Any]
    seed: int
    seconds: float
    steps: int
    scores: Scores
    facts: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    commit: str = ""
    cores: int = 0

    @property
    def key(self) -> str:
        """What two lines share where one stands for the other."""
        return json.dumps([self.part, self.side, self.settings, self.seed, self.version], sort_keys=True)


def mean(scores: Mapping[str, float]) -> float:
    """The mean over the queries."""
    return sum(scores.values()) / len(scores)


class Results:
    """The lines of a file."""

    def __init__(self, file: Path) -> None:
        """Read the file where there is one.

        Raises:
            SystemExit: a line cannot be read.
        """
        self.file = file
        self.lines: list[Line] = []
        for number, text in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], 1):
            try:
                self.lines.append(Line(**json.loads(text)))
            except (ValueError, TypeError) as error:
                raise SystemExit(f"{file}, line {number}: not a line of this benchmark ({error}); remove it") from error

    def add(self, line: Line) -> None:
        """Append a line to the file, figures by query to four digits."""
        scores = {name: {q: round(value, 4) for q, value in found.items()} for name, found in line.scores.items()}
        rounded = Line(**{**asdict(line), "scores": scores, "seconds": round(line.seconds, 1)})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(rounded), sort_keys=True, separators=(",", ":")) + "\n")
        self.lines.append(rounded)

    def find(self, part: str, side: str, settings: Mapping[str, Any], seed: int, since: int = 0) -> Line | None:
        """The latest line of a training or measurement with the present version; None where there is none.

        Args:
            part, side, settings, seed: as of `Line`.
            since: only lines from this number on.
        """
        wanted = Line(part, side, dict(settings), seed, 0, 0, {}, version=version_of(side)).key
        return next((line for line in reversed(self.lines[since:]) if line.key == wanted), None)

    def seeds(self, part: str, side: str) -> dict[int, Line]:
        """Seed -> its latest line, of those that share settings and version with the latest line of part and side."""
        lines = [line for line in self.lines if (line.part, line.side) == (part, side)]
        if not lines:
            return {}
        alike = [line for line in lines if (line.settings, line.version) == (lines[-1].settings, lines[-1].version)]
        return {line.seed: line for line in alike}


def stamped(line: Line) -> Line:
    """The line with version, commit (`+` where files are changed) and cores."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    commit = git("rev-parse", "--short=12", "HEAD") + changed
    return Line(**{**asdict(line), "version": version_of(line.side), "commit": commit, "cores": usable_cores()})
