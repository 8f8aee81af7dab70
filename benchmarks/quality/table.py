"""The table: each comparison over all seeds that the results have, with intervals, its must, and the verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.quality.results import OURS, THEIRS, Line, Results, mean
from qwen3emb.metrics.bootstrap import paired_bootstrap
from qwen3emb.metrics.verdict import Verdict

__all__ = ["COMPARISONS", "Comparison", "Found", "compared", "found_in", "headline", "printed"]

_MINILM = "all-minilm-l6-v2"
_RANKED = tuple[str, str]  # side, and which of its scores
SEEDS = 3  # from so many on an interval over seeds is said


@dataclass(frozen=True)
class Comparison:
    """What is compared and how much better it has to be.

    Attributes:
        id: its name.
        part: of the benchmark.
        model: side and name of its scores.
        baseline: likewise; None compares with 0.
        must: smallest difference that holds, in points where `points`, else as nDCG.
        aim: difference that we work towards; None = that of `aim_of`.
        points: whether nDCG@10 counts in hundredths.
        seeds: so many are needed.
        above: the difference must be more than `must`.
        sure: the 95 % interval must be above zero too.
        aim_of: name of the model's side's scores whose mean is the aim.
    """

    id: str
    part: str
    model: _RANKED
    baseline: _RANKED | None
    must: float
    aim: float | None
    points: bool = True
    seeds: int = SEEDS
    above: bool = False
    sure: bool = False
    aim_of: str = ""


COMPARISONS = (
    Comparison("demo: merged over base", "demo", (OURS, "merged"), (OURS, "base"), 0.6, 0.75, False, 1),
    Comparison(
        "demo: merged+reranker over merged",
        "demo",
        (OURS, "merged+reranker"),
        (OURS, "merged"),
        0.02,
        0.05,
        False,
        1,
        sure=True,
    ),
    Comparison("demo: reranker alone", "demo", (OURS, "reranker alone"), None, 0.65, None, False, 1, aim_of="merged"),
    Comparison("SciFact, over sentence-transformers", "scifact", (OURS, "test"), (THEIRS, "test"), 1, 5),
    Comparison("BM25's top 50, over CrossEncoder", "rerank", (OURS, "test"), (THEIRS, "test"), 1, 5),
    Comparison("merged over best single", "merged", (OURS, "merged"), (OURS, "single"), 0, 0.5),
    Comparison(
        "300 labels, with weak stage over without", "low-label", (OURS, "with"), (OURS, "without"), 0, 3, above=True
    ),
    Comparison("distilled + merged over merged", "distilled", (OURS, "distilled"), (OURS, "merged"), 0, 1),
    *(
        Comparison(f"{kind}, rescored, {name}", "small-vectors", (side, f"{kind}+rescore"), (side, "float32"), *least)
        for side, name in ((_MINILM, "MiniLM"), (OURS, "ours"))
        for kind, least in (("int8", (-0.2, -0.05, True, 1)), ("binary", (-1, -0.3, True, 1)))
    ),
)


@dataclass(frozen=True)
class Found:
    """A comparison with its figures, in the comparison's unit.

    Attributes:
        comparison: what is compared.
        model, baseline: means over the seeds.
        difference: between them.
        seeds: that both have.
        over_queries: 95 % interval by the paired bootstrap over the queries, each the mean over the seeds.
        over_seeds: 95 % interval of Student's t over the seeds' differences; None below `SEEDS`.
        aim: what we work towards.
        seconds: means of both sides over the seeds, as of `Line`.
        verdict: with the wider of both intervals on either side, as nDCG.
    """

    comparison: Comparison
    model: float
    baseline: float
    difference: float
    seeds: Sequence[int]
    over_queries: tuple[float, float]
    over_seeds: tuple[float, float] | None
    aim: float
    seconds: tuple[float, float]
    verdict: Verdict

    @property
    def held(self) -> bool | None:
        """Whether the must holds; None where seeds are missing."""
        if len(self.seeds) < self.comparison.seeds:
            return None
        over = self.difference - self.comparison.must
        reached = over > 0 if self.comparison.above else over >= 0
        return reached and (not self.comparison.sure or self.over_queries[0] > 0)

    def as_json(self) -> dict[str, Any]:
        """The figures, rounded to five digits."""
        figures = {"model": self.model, "baseline": self.baseline, "difference": self.difference, "aim": self.aim}
        return {
            "id": self.comparison.id,
            "part": self.comparison.part,
            **{name: round(value, 5) for name, value in figures.items()},
            "must": self.comparison.must,
            "held": self.held,
            "seeds": list(self.seeds),
            "over_queries": [round(end, 5) for end in self.over_queries],
            "over_seeds": self.over_seeds and [round(end, 5) for end in self.over_seeds],
            "seconds": [round(one, 1) for one in self.seconds],
            "verdict": self.verdict.as_json(),
        }


def found_in(results: Results, comparison: Comparison) -> Found | None:
    """The comparison's figures over the seeds that both sides have; None where there is none."""
    baseline = comparison.baseline or comparison.model
    lines = results.seeds(comparison.part, comparison.model[0]), results.seeds(comparison.part, baseline[0])
    models, baselines = _scores(lines[0], comparison.model[1]), _scores(lines[1], baseline[1])
    if comparison.baseline is None:
        baselines = {seed: dict.fromkeys(models[seed], 0.0) for seed in models}
    seeds = sorted(models.keys() & baselines.keys())
    if not seeds:
        return None
    unit = 100.0 if comparison.points else 1.0
    ours, theirs = _by_query([models[s] for s in seeds], unit), _by_query([baselines[s] for s in seeds], unit)
    gain = paired_bootstrap(ours, theirs)
    if gain is None:
        return None
    differences = [unit * (mean(models[s]) - mean(baselines[s])) for s in seeds]
    over_queries, over_seeds = (gain.low, gain.high), student(differences)
    wide = [over_queries, over_seeds] if over_seeds else [over_queries]
    low, high = min(low for low, _ in wide), max(high for _, high in wide)
    names = [side if side != other else score for (side, score), other in _named(comparison)]
    verdict = Verdict("ndcg@10", names[0], names[1], gain.mean / unit, low / unit, high / unit, gain.queries)
    aim = comparison.aim
    if aim is None:
        aim = unit * statistics.fmean(mean(lines[0][seed].scores[comparison.aim_of]) for seed in seeds)
    ran, other = (statistics.fmean(side[seed].seconds for seed in seeds) for side in lines)
    return Found(
        comparison, mean(ours), mean(theirs), gain.mean, seeds, over_queries, over_seeds, aim, (ran, other), verdict
    )


def _named(comparison: Comparison) -> list[tuple[_RANKED, str]]:
    """Both sides, each with the other's name: where it is the same, the names of the scores tell them apart."""
    baseline = comparison.baseline or ("nothing", "")
    return [(comparison.model, baseline[0]), (baseline, comparison.model[0])]


def _scores(lines: Mapping[int, Line], name: str) -> dict[int, Mapping[str, float]]:
    return {seed: line.scores[name] for seed, line in lines.items() if name in line.scores}


def _by_query(seeds: Sequence[Mapping[str, float]], unit: float) -> dict[str, float]:
    """Query -> mean over the seeds."""
    return {query: unit * statistics.fmean(scores[query] for scores in seeds) for query in seeds[0]}


def student(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean by Student's t; None for fewer than `SEEDS`."""
    if len(differences) < SEEDS:
        return None
    from scipy.stats import t

    centre = statistics.fmean(differences)
    width = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return centre - width, centre + width


def compared(results: Results, parts: Collection[str]) -> list[tuple[Comparison, Found | None]]:
    """The comparisons of the parts, with their figures."""
    return [(one, found_in(results, one)) for one in COMPARISONS if one.part in parts]


def headline(rows: Sequence[tuple[Comparison, Found | None]]) -> Verdict | None:
    """The verdict of them all: that of SciFact against sentence-transformers, else of the first that has figures."""
    known = [found for _, found in rows if found is not None]
    first = next((found for found in known if found.comparison.part == "scifact"), known[0] if known else None)
    return first.verdict if first else None


def printed(rows: Sequence[tuple[Comparison, Found | None]]) -> Table:
    """The comparisons as a table."""
    table = Table(title="What each part buys, nDCG@10", title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.caption = "in points, but for the demo; 95 % intervals of the difference over queries and over seeds"
    table.caption_justify = "left"
    for name in ("comparison", "ours", "other", "difference", "queries", "seeds", "n", "must", "aim", ""):
        table.add_column(name, justify="left" if name in ("comparison", "") else "right", no_wrap=True)
    for one, found in rows:
        digits = 2 if one.points else 3
        if found is None:
            aim = "" if one.aim is None else f"{one.aim:+g}"
            table.add_row(one.id, "", "", "", "", "", "0", f"{one.must:+g}", aim, "not measured yet")
            continue
        ends = [found.over_queries, found.over_seeds]
        intervals = ["" if e is None else f"[{e[0]:+.{digits}f}, {e[1]:+.{digits}f}]" for e in ends]
        word = {True: "held", False: "NOT HELD", None: f"needs {one.seeds} seeds"}[found.held]
        table.add_row(
            one.id,
            f"{found.model:.{digits}f}",
            f"{found.baseline:.{digits}f}",
            f"{found.difference:+.{digits}f}",
            *intervals,
            str(len(found.seeds)),
            f"{one.must:+g}",
            f"{found.aim:+.3g}",
            word,
        )
    return table
