"""The rows of the paper's Table 5 on one's own data: what to run besides the full run, and the table.

Two of the rows are models of the full run: its weak model is trained on synthetic data only, its supervised model is
not merged. The others are separate runs with a section removed or added; stages that such a variant shares with the
full run are reused from it (`stages.reuse_stages`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qwen3emb.config.datasets import is_synthetic
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import read_record, state_of
from qwen3emb.core.errors import UserError
from qwen3emb.core.location import joined
from qwen3emb.core.storage import Storage
from qwen3emb.metrics.bootstrap import paired_bootstrap
from qwen3emb.metrics.verdict import Verdict
from qwen3emb.pipeline.stages import identity, stage_folder
from qwen3emb.text.evaluation_sets import NO_SETS

__all__ = [
    "ABLATION",
    "EXTRA",
    "Row",
    "ablation_table",
    "on_another_set",
    "rows_of",
    "table_verdict",
    "variants",
    "with_figures",
    "write_ablation",
]

ABLATION = "ablation.json"
"""Name of the result in the run's storage."""

EXTRA = ("distill",)
"""Rows that cost a training and are made only where they are asked for (`ablate --with`)."""

FULL, NO_SYNTHETIC = "full", "no synthetic data"
_ALONE, _RERANKED = "reranker alone", "merged+reranker"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as in the paper; for rerankers the model and how it was trained.
        run: variant whose evaluation has the figures, "" for the full run.
        model: name of the model in that evaluation.
        against: name of the row that it is compared with; "" for the rows that others are compared with.
    """

    name: str
    run: str
    model: str
    against: str = FULL


def variants(cfg: RunConfig, extra: Collection[str] = ()) -> dict[str, list[str]]:
    """Variant -> `--set` overrides of the full run's configuration.

    Args:
        cfg: the full run.
        extra: of `EXTRA`; `distill` adds that stage, with the settings of `supervised`, to a run without it.

    Raises:
        UserError: the run has no synthetic data to leave out, does not evaluate a model that the table shows, or has no
            reranker for the stage `distill`; or `extra` names no such row.
    """
    unknown = next((name for name in extra if name not in EXTRA), None)
    if unknown:
        raise UserError(f"ablate --with {unknown}: no such row; there are: {', '.join(EXTRA)}")
    if not (cfg.synthesize and cfg.weak):
        raise UserError("ablate compares with and without synthetic data; this run has no section synthesize and weak")
    own = [row.model for row in rows_of(cfg) if not row.run and row.model in ("weak", "supervised", "distilled")]
    unseen = next((model for model in own if model not in cfg.evaluate.compare), None)
    if unseen:
        raise UserError(f"a row of ablate is the model {unseen} of the run itself; add it to evaluate.compare")
    mining = cfg.mine.model if cfg.mine.model != "weak" else cfg.models.retrieval
    overrides = {
        "no-synthetic": [
            *("synthesize=null", "weak=null", "reranker=null", "reranker_weak=null", "distill=null"),
            *(f"mine.model={mining}", "evaluate.compare=[]", *_without_synthetic_sets(cfg)),
        ]
    }
    if cfg.reranker:
        weak = "null" if cfg.reranker_weak else json.dumps(cfg.reranker.model_dump(mode="json"))
        overrides["other-reranker"] = [f"reranker_weak={weak}", "evaluate.compare=[]"]
        if cfg.reranker.loss != "sft":
            sections = ("reranker", *(["reranker_weak"] if cfg.reranker_weak else []))
            overrides["sft-reranker"] = [*(f"{name}.loss=sft" for name in sections), "evaluate.compare=[]"]
    if cfg.distill:
        overrides["no-distillation"] = ["distill=null", "evaluate.compare=[]"]
    elif "distill" in extra:
        overrides["distilled"] = [f"distill={_distilling(cfg)}", "evaluate.compare=[]"]
    return {name: [f"storage={_place(cfg, name)}", *changes] for name, changes in overrides.items()}


def _distilling(cfg: RunConfig) -> str:
    """A section `distill` for a run without it: the settings of `supervised`, all mined negatives as candidates."""
    if not cfg.reranker:
        raise UserError("ablate --with distill: a reranker is the teacher, but this run has no section reranker")
    section = cfg.supervised.model_dump(mode="json", exclude_unset=True, exclude={"teacher", "datasets"})
    return json.dumps(section | {"teacher": {"candidates": max(1, cfg.mine.negatives)}})


def _without_synthetic_sets(cfg: RunConfig) -> list[str]:
    """The override of `supervised.datasets` without synthetic ones: a mixture of datasets without rows is refused."""
    sets = cfg.supervised.datasets
    kept = {name: settings.model_dump(mode="json", exclude_unset=True) for name, settings in sets.items()}
    kept = {name: settings for name, settings in kept.items() if not is_synthetic(name)}
    return [f"supervised.datasets={json.dumps(kept)}"] if len(kept) < len(sets) else []


def _place(cfg: RunConfig, name: str) -> str:
    return joined(cfg.storage, f"ablation/{name}")


def rows_of(cfg: RunConfig) -> list[Row]:
    """The rows of a run's table, in the paper's order, then those of distillation and of the reranker."""
    rows = [
        Row("only synthetic data", "", "weak"),
        Row(NO_SYNTHETIC, "no-synthetic", "merged"),
        Row("no merge", "", "distilled" if cfg.distill else "supervised"),
        Row(FULL, "", "merged", ""),
        Row("no distillation", "no-distillation", "merged") if cfg.distill else Row("distilled", "distilled", "merged"),
    ]
    if cfg.reranker:
        model = _RERANKED if cfg.evaluate.rerank_weight == 1 else _ALONE
        names = ("no weak stage", "weak stage") if not cfg.reranker_weak else ("weak stage", "no weak stage")
        configured, other = (f"{model}, {name}" for name in names)
        rows += [Row(configured, "", model, ""), Row(other, "other-reranker", model, configured)]
        if cfg.reranker.loss != "sft":
            rows.append(Row(f"{model}, the paper's SFT loss", "sft-reranker", model, configured))
    return rows


def on_another_set(cfg: RunConfig, runs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Variant -> why it cannot be compared: a run without synthetic data has no written queries either.

    Arguments and errors as in `with_figures`.
    """
    results = {name: _evaluation(run).read_json("results.json") for name, run in {"": cfg, **runs}.items()}
    if not results[""]["models"]:
        raise UserError(f"ablate: {NO_SETS}")
    main = results[""].get("set")
    return {
        name: f"it has no held-out set {main!r}, on which the full run is judged"
        for name, result in results.items()
        if result.get("set") != main
    }


def with_figures(cfg: RunConfig, runs: Mapping[str, RunConfig]) -> list[dict[str, Any]]:
    """Each row of the table with its metrics, and the difference of its nDCG@10 to the row that it is compared with.

    Args:
        cfg: the full run.
        runs: variant -> its configuration; rows of variants that are not among them, or that have not the same held-out
            set, are left out.

    Returns:
        For each row "row", "evaluation" (its fingerprint), its metrics, and, where it is compared, "against", "mean",
        "low", "high" (95 % interval), "queries" and "sure" (zero lies outside of the interval).

    Raises:
        UserError: a run is not evaluated, its evaluation is of another configuration, or there is no held-out set.
    """
    elsewhere = on_another_set(cfg, runs)
    evaluated = {name: _evaluation(run) for name, run in {"": cfg, **runs}.items() if name not in elsewhere}
    metrics = {name: folder.read_json("results.json")["models"] for name, folder in evaluated.items()}
    per_query = {name: folder.read_json("per_query.json") for name, folder in evaluated.items()}
    rows = {row.name: row for row in rows_of(cfg) if row.run in evaluated}
    lines = []
    for row in rows.values():
        fingerprint = read_record(evaluated[row.run])["fingerprint"]
        line: dict[str, Any] = {"row": row.name, "evaluation": fingerprint, **metrics[row.run][row.model]}
        if row.against:
            other = rows[row.against]
            gain = paired_bootstrap(per_query[row.run][row.model], per_query[other.run][other.model])
            if gain is not None:
                line |= {"against": row.against, **asdict(gain), "sure": gain.sure}
        lines.append(line)
    return lines


def _evaluation(cfg: RunConfig) -> Storage:
    """Folder of a run's evaluation, which must be complete for its present configuration."""
    folder = stage_folder(cfg, "evaluate")
    if state_of(folder, identity(cfg, "evaluate")) != "done":
        raise UserError(f"{folder.uri}: not complete for this configuration; run qwen3emb ablate again")
    return folder


def ablation_table(lines: Sequence[Mapping[str, Any]], headline: str = "ndcg@10") -> Table:
    """The printed table: metrics, and after the `headline` the difference with its interval, `*` where it is sure."""
    extra = {"row", "evaluation", "against", "mean", "low", "high", "queries", "sure"}
    table = Table(title="What each part is worth (held-out data)", title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.caption = "difference in ndcg@10 to `full`, of a reranker to the other one; * = zero is outside of the 95 %"
    table.caption_justify = "left"
    table.add_column("model", no_wrap=True)
    names = [name for name in lines[0] if name not in extra]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        if name == headline:
            table.add_column("difference", justify="right", no_wrap=True)
    for line in lines:
        cells = [str(line["row"])]
        for name in names:
            cells.append(f"{line[name]:.3f}")
            if name == headline:
                sure = "*" if line.get("sure") else ""
                difference = (
                    f"{line['mean']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}]{sure}" if "mean" in line else ""
                )
                cells.append(difference)
        table.add_row(*cells)
    return table


def table_verdict(lines: Sequence[Mapping[str, Any]], headline: str = "ndcg@10") -> Verdict | None:
    """What the table is about: the full run against the one without synthetic data; None where that row is missing."""
    row = next((line for line in lines if line["row"] == NO_SYNTHETIC and "mean" in line), None)
    if row is None:
        return None
    # The row holds its own difference to the full run; the verdict is on the full run.
    return Verdict(headline, FULL, NO_SYNTHETIC, -row["mean"], -row["high"], -row["low"], row["queries"])


def write_ablation(cfg: RunConfig, lines: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> str:
    """Write rows, verdict, and why variants are left out, to `ablation.json` in the run's storage; its location."""
    storage, verdict = Storage(cfg.storage), table_verdict(lines)
    content = {"rows": list(lines), "left_out": dict(left_out), "verdict": verdict and verdict.as_json()}
    storage.write_json(ABLATION, content)
    return str(storage / ABLATION)
