"""The report of a run: printed tables of quality and time, and `summary.json` for programs.

`gain`, `quality_table`, `seconds_table` and `summary` work on numbers alone; the other functions read the records of a
run's stages and write to its storage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from qwen3emb.config.datasets import DOCSTRINGS
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import read_record
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.by_language import language_table
from qwen3emb.evaluation.sizes import size_table
from qwen3emb.pipeline.stages import STAGES, stage_folder
from qwen3emb.text.evaluation_sets import SYNTHETIC_QUERIES

__all__ = [
    "SUMMARY",
    "VARIANTS",
    "Metrics",
    "comparison_table",
    "comparisons",
    "further_sets",
    "gain",
    "metrics_of",
    "nothing_to_judge",
    "print_report",
    "quality_table",
    "quality_tables",
    "recorded",
    "seconds_table",
    "summary",
    "verdict_of",
    "write_summary",
]


SUMMARY = "summary.json"
"""Name of the summary in the run's storage."""

Metrics = Mapping[str, Mapping[str, float]]
"""Metric name, e.g. `ndcg@10` -> variant -> value in [0, 1]; the `evaluate` stage records it."""

VARIANTS = {
    "base": "the model as it came",
    "weak": "trained on all synthetic pairs",
    "supervised": "trained on labelled + filtered pairs",
    "distilled": "taught by the reranker, from the supervised model",
    "merged": "its last checkpoints as one model (stage merge)",
    "reranker alone": "the merged model's top documents in the reranker's order",
    "merged+reranker": "the merged model's top documents reranked (evaluate.rerank_weight)",
}
"""The rows of the table in the order of the pipeline, with their descriptions."""


def gain(values: Mapping[str, float], variant: str) -> float | None:
    """The value of `variant` minus that of the variant before it; None for the first one or where a value is missing.

    Both ways of using the reranker are compared with the merged model.
    """
    present = [v for v in VARIANTS if v in values]
    before = [v for v in present[: present.index(variant)] if v != "reranker alone"] if variant in present else []
    return values[variant] - values[before[-1]] if before else None


def quality_table(metrics: Metrics, headline: str = "ndcg@10", data: str = "held-out data") -> Table:
    """One row per variant, one column per metric, and the gain in the `headline` metric over the variant before.

    `data` says in the title what the figures are of.
    """
    known = {v for values in metrics.values() for v in values}
    legend = "\n".join(f"{name}: {description}" for name, description in VARIANTS.items() if name in known)
    table = Table(title=f"What each stage bought ({data})", title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False  # fits 80 columns
    table.caption, table.caption_justify = legend, "left"
    table.add_column("model", no_wrap=True)
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
        if name == headline:
            table.add_column("gain", justify="right", no_wrap=True)
    for variant in [*(v for v in VARIANTS if v in known), *sorted(known - VARIANTS.keys())]:
        table.add_row(variant, *_cells(metrics, variant, headline))
    return table


def _cells(metrics: Metrics, variant: str, headline: str) -> list[str]:
    cells = []
    for name, values in metrics.items():
        cells.append(f"{values[variant]:.3f}" if variant in values else "-")
        if name == headline:
            added = gain(values, variant)
            cells.append("" if added is None else f"{added:+.3f}")
    return cells


def seconds_table(seconds: Mapping[str, float | None], reused: Collection[str]) -> Table:
    """One row per stage: its seconds (None: not known), and whether it ran now or was reused."""
    table = Table(title="Stages", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("")
    for stage, spent in seconds.items():
        shown = "-" if spent is None else f"{spent:.1f}"
        table.add_row(stage, shown, "reused" if stage in reused else "ran")
    ran = sum(s for stage, s in seconds.items() if s is not None and stage not in reused)
    table.add_section()
    table.add_row("this run", f"{ran:.1f}", "")
    return table


def summary(metrics: Metrics, seconds: Mapping[str, float | None], reused: Sequence[str]) -> dict[str, Any]:
    """The content of `summary.json`: metrics by variant, `seconds` by stage, and which stages were `reused`.

    A reused stage's seconds are those of the run that made it.
    """
    return {
        **{name: dict(values) for name, values in metrics.items()},
        "seconds": {stage: None if spent is None else round(spent, 1) for stage, spent in seconds.items()},
        "reused": list(reused),
    }


def metrics_of(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics by variant in the completion record of `evaluate`; its other figures are left out."""
    metrics = record.get("metrics", {}).items()
    return {name: dict(values) for name, values in metrics if isinstance(values, Mapping)}


def recorded(cfg: RunConfig, done: Collection[str]) -> dict[str, dict[str, Any]]:
    """The completion records of the `done` stages, by stage, in the order of the pipeline."""
    return {name: read_record(stage_folder(cfg, name)) for name in STAGES if name in done}


def write_summary(cfg: RunConfig, done: Collection[str], ran: Mapping[str, float]) -> None:
    """Write `summary.json` into the run's storage once the run is evaluated.

    Args:
        cfg: the run.
        done: stages that are complete.
        ran: seconds of those that ran just now; the others count as reused.
    """
    if "evaluate" not in done:
        return
    records = recorded(cfg, done)
    seconds = {name: ran.get(name, record.get("seconds")) for name, record in records.items()}
    reused = [name for name in records if name not in ran]
    content = summary(metrics_of(records["evaluate"]), seconds, reused) | {"verdict": verdict_of(cfg)}
    content |= further_sets(cfg)
    Storage(cfg.storage).write_json(SUMMARY, content)


def print_report(
    cfg: RunConfig, done: Collection[str], ran: Mapping[str, float], config: str, console: Console
) -> None:
    """Print seconds, quality, the location of the artifacts and the next command; arguments as in `write_summary`.

    Args:
        config: path of the config file, for the printed commands.
        console: prints.
    """
    records = recorded(cfg, done)
    seconds = {name: ran.get(name, record.get("seconds")) for name, record in records.items()}
    console.print(seconds_table(seconds, [name for name in records if name not in ran]))
    if "evaluate" in records:
        for table in quality_tables(cfg):
            console.print(table)
        note = nothing_to_judge(cfg)
        if note:
            console.print(f"evaluate   {note}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"summary    {Storage(cfg.storage) / SUMMARY}", soft_wrap=True, highlight=False)
    console.print(f"artifacts  {Storage(cfg.storage)}", soft_wrap=True, highlight=False)
    verdict = verdict_of(cfg) if "evaluate" in records else None
    for line in [*_next(records, config), *([verdict["line"]] if verdict else [])]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def quality_tables(cfg: RunConfig) -> list[Table]:
    """The metrics of `evaluate`, by size of vector and by language where it wrote them, of further sets; `comparisons`.

    Raises:
        UserError: the stage is not complete.
    """
    folder = stage_folder(cfg, "evaluate")
    metrics, results = metrics_of(read_record(folder)), _results(cfg)
    tables = [quality_table(metrics, data=_described(results))] if metrics else []
    tables += [size_table(results["sizes"])] if results.get("sizes") else []
    languages = results.get("languages")
    if languages:
        tables.append(language_table(languages, cfg.evaluate.few_rows))
    for further in results.get("sets", {}).values():
        tables.append(quality_table(_by_metric(further["models"]), data=_described(further)))
    return [*tables, *(comparison_table(model, found) for model, found in comparisons(cfg).items())]


def comparisons(cfg: RunConfig) -> dict[str, dict[str, Any]]:
    """Model -> what `merge.keep: best` compared and kept, from the stage's report; empty without that setting."""
    folder = stage_folder(cfg, "merge")
    reports = folder.read_json("report.json") if folder.exists("report.json") else {}
    return {model: report["comparison"] for model, report in reports.items() if "comparison" in report}


def comparison_table(model: str, comparison: Mapping[str, Any]) -> Table:
    """One row per candidate of the stage `merge`: its dev score and its difference to the best single checkpoint."""
    title = f"Merging the {model} model ({comparison['dev_queries']} dev queries)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.caption, table.caption_justify = comparison["sentence"], "left"
    table.add_column("candidate")
    for name in ("ndcg@10", f"to {comparison['best_single']}", "95 %, all at once", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison["candidates"]:
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        cells = (f"{row['dev_ndcg@10']:.3f}", f"{row['difference']:+.3f}", interval, "kept" if row["chosen"] else "")
        own = row["name"] == comparison["best_single"]
        table.add_row(row["name"], cells[0], *(("", "") if own else cells[1:3]), cells[3])
    return table


def further_sets(cfg: RunConfig) -> dict[str, Any]:
    """Of the evaluation's results, for programs: the main "set", whether it has "synthetic_queries", further "sets"."""
    results = _results(cfg)
    return {key: results[key] for key in ("set", "synthetic_queries", "sets", "note") if results.get(key)}


def nothing_to_judge(cfg: RunConfig) -> str | None:
    """The sentence of an evaluation that had no set to judge on, None where it had one."""
    note: str | None = _results(cfg).get("note")
    return note


def _results(cfg: RunConfig) -> dict[str, Any]:
    """`results.json` of the stage `evaluate`; empty where it is not there."""
    folder = stage_folder(cfg, "evaluate")
    results: dict[str, Any] = folder.read_json("results.json") if folder.exists("results.json") else {}
    return results


def _described(results: Mapping[str, Any]) -> str:
    """What a set of results is of, for the title of its table."""
    if results.get("synthetic_queries"):
        return f"held-out documents, {SYNTHETIC_QUERIES}"
    return "held-out data" if results.get("set") in (None, "", DOCSTRINGS) else f"held-out queries of {results['set']}"


def _by_metric(models: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """model -> metric -> value as metric -> model -> value."""
    names = dict.fromkeys(metric for values in models.values() for metric in values)
    return {metric: {model: values[metric] for model, values in models.items()} for metric in names}


def verdict_of(cfg: RunConfig) -> dict[str, Any] | None:
    """What `evaluate` wrote of `metrics.verdict.Verdict`, with its `line`; None where there was nothing to compare."""
    verdict: dict[str, Any] | None = _results(cfg).get("verdict")
    return verdict


def _next(records: Collection[str], config: str) -> list[str]:
    if "index" not in records:
        return [f"next       python -m jobs.pipeline --config {config}"]
    return [
        f'next       .venv/bin/qwen3emb search "parse a date from a string" --config {config}',
        "           make serve",
    ]
