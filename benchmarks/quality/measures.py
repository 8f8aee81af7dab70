"""The parts that compare our models with each other: merging, synthetic data, distillation, int8 and bits, a run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import data
from benchmarks.quality.parts import EMBEDDING, base, chosen, place, trained
from benchmarks.quality.plan import Job, Options, Outcome, said
from benchmarks.quality.results import OURS, Results, mean
from benchmarks.quality.runs import distilling_run
from benchmarks.quality.side import finished, order
from qwen3emb.model.fetch import fetch_model

__all__ = ["demo", "distilled", "low_label", "merged", "small_vectors"]

DEV_SETS = ["dev", "mlquestions/dev", "xquad/en/dev"]
LOW_LABEL_ROWS = 300
RESCORED = ["int8", "int8+rescore", "binary", "binary+rescore"]
_TEST, _WHOLE = 330.0, 1000.0  # seconds: the test split, and all of SciFact's documents, with one model
_DEV_SETS = 900.0  # seconds: the dev sets with all checkpoints
_SIZES = "qwen3emb.evaluation.sizes"  # by name: it may be missing
_RESULTS, _PER_QUERY = "evaluate/results.json", "evaluate/per_query.json"


def demo(options: Options, results: Results) -> Sequence[Job]:
    """What a finished run's evaluation says: read, not computed."""
    folder = options.run

    def work() -> Outcome:
        missing = [name for name in (_RESULTS, _PER_QUERY) if not (folder / name).is_file()]
        if missing:
            raise SystemExit(
                f"quality, demo: no {folder / missing[0]}; run `make demo` first, or name a run with --run"
            )
        per_query: dict[str, dict[str, float]] = json.loads((folder / _PER_QUERY).read_text(encoding="utf-8"))
        models = json.loads((folder / _RESULTS).read_text(encoding="utf-8"))["models"]
        return Outcome(0, 0, per_query, {"means": {name: models[name]["ndcg@10"] for name in per_query}})

    record = folder / "evaluate" / "artifact.json"
    fingerprint = json.loads(record.read_text(encoding="utf-8"))["fingerprint"] if record.is_file() else ""
    return [Job("demo", OURS, {"evaluation": fingerprint}, 0, 1, work)]


def _settings(options: Options, results: Results) -> dict[str, Any]:
    """What the trials of `scifact` chose for us; before they are done, what they begin with."""
    best = chosen("scifact", EMBEDDING, OURS, options, results)[1] or EMBEDDING[OURS][0]
    return options.measured(best)


def _model(options: Options, settings: dict[str, Any], seed: int) -> Path:
    """Folder of the model that `scifact` trained with these settings and seed; it is trained where it is missing."""
    out = place(options, f"scifact-{OURS}", settings, seed)
    if not (out / "merged").is_dir():
        said(f"{out} is not there; training it, {options.minutes:g} min")
        trained(OURS, settings, seed, out, options.minutes)
    return out


def merged(options: Options, results: Results) -> Sequence[Job]:
    """The merge of the last checkpoints against the best of them alone, mean over three dev sets."""
    settings = _settings(options, results)

    def work(seed: int) -> Outcome:
        began, out = time.monotonic(), _model(options, settings, seed)
        found = {}
        for model in [out / "merged", *sorted((out / "checkpoints").iterdir())]:
            scores = order("embedding.scores", model=str(model), sets=DEV_SETS, tokens=settings["tokens"])
            found[model.name] = balanced(scores.values(), DEV_SETS)
            said(f"{model.name}: " + ", ".join(f"{name} {100 * mean(one):.2f}" for name, one in scores.items()))
        means = {name: round(mean(scores), 5) for name, scores in found.items()}
        single = max((name for name in means if name != "merged"), key=lambda name: means[name])
        both = {"merged": found["merged"], "single": found[single]}
        return Outcome(time.monotonic() - began, 0, both, {"means": means, "single": single})

    expected = 60 * options.minutes + _DEV_SETS
    return [Job("merged", OURS, settings, seed, expected, partial(work, seed)) for seed in options.seeds]


def balanced(sets: Iterable[dict[str, float]], names: Sequence[str]) -> dict[str, float]:
    """The queries of several sets as one, weighted so that their mean is the mean of the sets' means."""
    known = list(sets)
    queries = sum(map(len, known))
    return {
        f"{name}/{query}": value * queries / (len(known) * len(one))
        for name, one in zip(names, known, strict=True)
        for query, value in one.items()
    }


def low_label(options: Options, results: Results) -> Sequence[Job]:
    """A few labelled rows, with and without a weak stage on synthetic pairs before; half the time for the rows."""
    pairs = sorted(str(file.relative_to(options.pairs)) for file in options.pairs.rglob("pairs/*.parquet"))
    settings = _settings(options, results)
    known = settings | {"rows": LOW_LABEL_ROWS, "pairs": len(data.synthetic(options.pairs)) if pairs else 0}

    def work(seed: int) -> Outcome:
        began = time.monotonic()
        weak = place(options, "weak", known, seed)
        if not (weak / "merged").is_dir():
            trained(OURS, settings, seed, weak, options.minutes, rows={"pairs": str(options.pairs)})
        test = options.split("test")
        starts, scores, steps = {"with": str(weak / "merged"), "without": base()}, dict[str, dict[str, float]](), 0
        for name, start in starts.items():
            out = options.work / "trial"
            half, rows = options.minutes / 2, {"most": LOW_LABEL_ROWS}
            found = trained(OURS, settings, seed, out, half, rows=rows, model=start)
            arguments = {"model": found["model"], "sets": [test], "tokens": settings["tokens"]}
            scores[name] = order("embedding.scores", **arguments)[test]
            steps = found["steps"]
        return Outcome(time.monotonic() - began, steps, scores)

    if not pairs:
        raise SystemExit(
            f"quality, low-label: no synthetic pairs in {options.pairs}; make them once with `make bench-quality "
            'ARGS="pairs"`, or name their folder with --pairs'
        )
    expected = 2 * 60 * options.minutes + 2 * _TEST
    return [Job("low-label", OURS, known, seed, expected, partial(work, seed)) for seed in options.seeds]


def distilled(options: Options, results: Results) -> Sequence[Job]:
    """A run with the stage `distill` before its merge, and the same run without, on SciFact's test split."""

    def work(seed: int) -> Outcome:
        began, scores = time.monotonic(), dict[str, dict[str, float]]()
        storage = options.work / f"distill-{options.minutes:g}-{seed}"
        for name in ("distilled", "merged"):  # the second takes over all stages but merge and evaluate
            command, folder = distilling_run(storage, options, seed, name == "distilled")
            finished([sys.executable, *command], "distilled")
            scores[name] = json.loads((folder / _PER_QUERY).read_text(encoding="utf-8"))["merged"]
        shutil.rmtree(storage)
        return Outcome(time.monotonic() - began, 0, scores)

    settings = options.measured({})
    expected = 3 * 60 * options.minutes + 2 * _TEST
    return [Job("distilled", OURS, settings, seed, expected, partial(work, seed)) for seed in options.seeds]


def small_vectors(options: Options, results: Results) -> Sequence[Job]:
    """int8 and binary vectors against float32 on SciFact's test split, of all-MiniLM-L6-v2 and of our model."""
    if importlib.util.find_spec(_SIZES) is None:
        raise SystemExit("quality, small-vectors: this version has no int8 and binary vectors yet")
    settings, split = _settings(options, results), options.split("test/whole")

    def vectors(model: str) -> Path:
        if model == OURS:
            out = _model(options, settings, 0)
            directory, tokens = str(out / "merged"), settings["tokens"]
        else:
            name = f"{model}-small" if options.small else model
            out, directory, tokens = options.work / name, str(fetch_model(model)), 256
            out.mkdir(parents=True, exist_ok=True)
        file = out / "whole.npz"
        if not file.is_file():
            order("embedding.scores", model=directory, sets=[split], tokens=tokens, vectors=str(file))
        return file

    def work(model: str) -> Outcome:
        began = time.monotonic()
        kept = np.load(vectors(model))
        scores = small_scores(kept["queries"], kept["documents"], split)
        return Outcome(time.monotonic() - began, 0, scores)

    minilm = "all-minilm-l6-v2"
    return [
        Job("small-vectors", minilm, {"small": True} if options.small else {}, 0, _WHOLE, partial(work, minilm)),
        Job("small-vectors", OURS, settings, 0, _WHOLE + 60 * options.minutes, partial(work, OURS)),
    ]


def small_scores(queries: np.ndarray, documents: np.ndarray, split: str) -> dict[str, dict[str, float]]:
    """Kind of vectors -> query -> nDCG@10 on a set, ranked as the stage `evaluate` ranks them."""

    from qwen3emb.config.serving import EvaluateConfig
    from qwen3emb.evaluation.ranking import nearest, ranking_per_query
    from qwen3emb.metrics.retrieval import own_documents

    small: Any = importlib.import_module(_SIZES)
    cfg: Any = EvaluateConfig()
    test = data.of(split)
    own = own_documents(test)
    rankings: dict[str, Any] = {"float32": nearest(queries, documents, 10, own)}
    sizes = small.sizes_of(RESCORED, documents.shape[1])
    for size, ranking in small.size_rankings(sizes, queries, documents, cfg.rescore, own):
        rankings[size.name] = ranking
    found = {name: ranking_per_query(test, ranking, [10]) for name, ranking in rankings.items()}
    return {name: {q: one["ndcg@10"] for q, one in rows.items()} for name, rows in found.items()}
