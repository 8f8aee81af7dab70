"""The parts of the benchmark: which trainings and measurements each consists of."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.quality import data
from benchmarks.quality.choosing import Stage, choose, grid, minutes_of_trial
from benchmarks.quality.plan import Job, Options, Outcome
from benchmarks.quality.results import OURS, THEIRS, Results, version_of
from benchmarks.quality.side import order
from qwen3emb.model.fetch import fetch_model

__all__ = ["EMBEDDING", "RERANKER", "base", "chosen", "place", "rerank", "scifact", "trained"]

Settings = dict[str, Any]

RATES = (2e-5, 5e-5, 1e-4, 3e-4)
_PRECISION = Stage(grid(precision=["bf16", "fp32"]), by="speed")  # the result is the same but for rounding
EMBEDDING: dict[str, tuple[Settings, list[Stage]]] = {
    OURS: ({"lr": 2e-4, "tokens": 128, "batch": 16, "negatives": 0}, []),
    THEIRS: (
        {"lr": 1e-4, "tokens": 128, "batch": 16, "negatives": 0, "pooling": "mean", "precision": "bf16"},
        [
            _PRECISION,
            Stage(grid(lr=RATES)),
            Stage(grid(tokens=[128, 256])),
            Stage(grid(batch=[16, 32])),
            Stage([{}, {"pooling": "lasttoken"}, {"negatives": 1}]),
        ],
    ),
}
"""Side -> the settings that its trials begin with, and the trials: one setting after the other, since a grid of all of
them would take hours. Only the peer is tuned: ours keeps those of docs/recipe.md, which can only cost it points."""
RERANKER: dict[str, tuple[Settings, list[Stage]]] = {
    OURS: ({"lr": 2e-4, "loss": "group", "hard": 4, "random": 3}, []),
    THEIRS: (
        {"lr": 5e-5, "loss": "bce", "hard": 4, "random": 3, "head": "label", "precision": "bf16"},
        [
            _PRECISION,
            Stage(grid(lr=[2e-5, 5e-5, 1e-4, 2e-4])),
            Stage(grid(loss=["bce", "lambda", "mnrl"])),
            Stage([{}, {"head": "yes_no"}]),
        ],
    ),
}
DEV_DEPTH, DEPTH = 10, 50  # of BM25's documents that are reranked on the dev split, and measured
_AROUND = 150.0  # seconds that a training takes besides its own time: starts, and the dev split
_TEST = 330.0  # seconds for the test split: 1,500 documents, or 60 queries with 50 each


def base() -> str:
    """Directory of the model that all trainings start from."""
    return str(fetch_model("smollm2-135m-instruct"))


def place(options: Options, job: str, settings: Mapping[str, Any], seed: int) -> Path:
    """Folder of a training's model, named by what it depends on."""
    words = json.dumps([job, settings, seed, version_of(OURS)], sort_keys=True)
    return options.work / f"{job}-{seed}-{hashlib.sha256(words.encode()).hexdigest()[:10]}"


def trained(
    side: str, settings: Settings, seed: int, out: Path, minutes: float, trial: bool = False, **other: Any
) -> dict[str, Any]:
    """An embedding model of a side; `other` may name another start (`model`) or other rows."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    function = "embedding.ours" if side == OURS else "embedding.theirs"
    arguments = {"model": base(), "rows": {}} | other
    return order(function, settings=settings, seed=seed, seconds=60 * minutes, trial=trial, out=str(out), **arguments)


def chosen(
    part: str, sides: Mapping[str, tuple[Settings, list[Stage]]], side: str, options: Options, results: Results
) -> tuple[list[Settings], Settings | None]:
    """The trials of a side of a part, and its settings; without trials those that they would begin with."""
    start, stages = sides[side]
    minutes = minutes_of_trial(options.minutes)

    def trial(settings: Settings) -> Any:
        return results.find(f"{part}/trial", side, settings | {"minutes": minutes}, 0)

    return choose(stages, start, trial, options.trials)


def _jobs(
    part: str,
    sides: Mapping[str, tuple[Settings, list[Stage]]],
    work: Callable[..., Outcome],
    options: Options,
    results: Results,
) -> list[Job]:
    """One side's trials, the other's, then for each seed both sides' trainings that are compared."""
    jobs, best = [], {}
    minutes = minutes_of_trial(options.minutes)
    for side in sides:
        trials, best[side] = chosen(part, sides, side, options, results)
        for settings in trials:
            do = partial(work, side, settings, 0, minutes, True)
            known = settings | {"minutes": minutes}
            jobs.append(Job(f"{part}/trial", side, known, 0, 60 * minutes + _AROUND, do))
    for seed in options.seeds:
        for side, compared in best.items():
            if compared is not None:
                known = options.measured(compared)
                do = partial(work, side, compared, seed, options.minutes, False)
                jobs.append(Job(part, side, known, seed, 60 * options.minutes + _TEST, do))
    return jobs


def scifact(options: Options, results: Results) -> Sequence[Job]:
    """The same time for an embedding model, ours and sentence-transformers', on SciFact's test split."""

    def work(side: str, settings: Settings, seed: int, minutes: float, trial: bool) -> Outcome:
        known = options.measured(settings)
        out = options.work / "trial" if trial else place(options, f"scifact-{side}", known, seed)
        found = trained(side, settings, seed, out, minutes, trial)
        name, split = ("dev", "dev") if trial else ("test", options.split("test"))
        scores = order("embedding.scores", model=found["model"], sets=[split], tokens=settings["tokens"])
        return Outcome(found["seconds"], found["steps"], {name: scores[split]}, found["facts"])

    return _jobs("scifact", EMBEDDING, work, options, results)


def rerank(options: Options, results: Results) -> Sequence[Job]:
    """The same time for a reranker, ours and sentence-transformers', on BM25's best of SciFact's test split."""

    def work(side: str, settings: Settings, seed: int, minutes: float, trial: bool) -> Outcome:
        out = options.work / "trial"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        function = "reranker.ours" if side == OURS else "reranker.theirs"
        split, depth = ("dev/whole", DEV_DEPTH) if trial else (options.split("reranked"), DEPTH)
        found = order(
            function,
            model=base(),
            settings=settings,
            seed=seed,
            seconds=60 * minutes,
            trial=trial,
            out=str(out),
            split=split,
            depth=depth,
        )
        shutil.rmtree(out)
        return Outcome(found["seconds"], found["steps"], {"dev" if trial else "test": found["scores"]}, found["facts"])

    def first() -> Outcome:
        began, test = time.monotonic(), data.of("reranked")
        run = {query: data.in_order(documents) for query, documents in data.candidates(test, DEPTH).items()}
        return Outcome(time.monotonic() - began, 0, {"test": data.ndcg(test, run)})

    bm25 = Job("rerank", "bm25", {"depth": DEPTH}, 0, 10, first)
    return [bm25, *_jobs("rerank", RERANKER, work, options, results)]
