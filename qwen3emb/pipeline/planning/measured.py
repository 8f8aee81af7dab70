"""What finished stages of a run have really taken, and what the stages behind them may be planned with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import finished, read_record
from qwen3emb.core.storage import Storage
from qwen3emb.pipeline.planning.assumptions import Assumptions
from qwen3emb.pipeline.planning.work import StageEstimate
from qwen3emb.pipeline.stages import stage_folder

__all__ = ["Comparison", "Measured", "compared", "learned", "measured"]

_METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Measured:
    """What the record of a finished stage says; tokens are None where it does not count them."""

    rows: int
    tokens: float | None
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """One stage: predicted from the configuration alone, predicted when the stages before it were done, measured."""

    before: StageEstimate
    later: StageEstimate
    measured: Measured


def measured(cfg: RunConfig, name: str) -> Measured | None:
    """What a stage has taken; None where it is not finished. Of which configuration it was, `qwen3emb status` says."""
    folder = stage_folder(cfg, name)
    if not finished(folder):
        return None
    record = read_record(folder)
    return Measured(int(record["rows_out"]), _tokens(cfg, name, folder, record), float(record["seconds"]))


def _tokens(cfg: RunConfig, name: str, folder: Storage, record: dict[str, Any]) -> float | None:
    metrics = record.get("metrics", {})
    if name == "synthesize":
        counted = [metrics.get(key) for key in ("prompt_tokens", "generated_tokens")]
        return sum(counted) if all(isinstance(n, int) for n in counted) else None
    workers = getattr(getattr(cfg, name, None), "num_workers", None)
    if workers is None or not folder.exists(_METRICS):
        return None
    steps = [json.loads(line) for line in folder.read_bytes(_METRICS).splitlines()]
    # Each line has the tokens of the first worker, and texts are spread so that all have about as many.
    return int(workers) * sum(float(step.get("tokens", 0)) for step in steps)


def learned(cfg: RunConfig, name: str) -> dict[str, float]:
    """Assumptions that the record of a finished stage replaces by what it found; empty for other stages."""
    folder = stage_folder(cfg, name)
    if not finished(folder):
        return {}
    record = read_record(folder)
    metrics, rejected, rows_in = record.get("metrics", {}), record.get("rejected", {}), record["rows_in"]
    found: dict[str, float] = {}
    if name == "corpus":
        found = {key: metrics[key] for key in ("passages", "pairs") if metrics.get(key)}
    elif name == "synthesize" and rows_in:
        found = {"synthesis_yield": 1 - sum(rejected.values()) / rows_in}
    elif name == "filter" and metrics.get("scored"):
        found = {"filter_kept": 1 - rejected.get("below_threshold", 0) / metrics["scored"]}
    elif name == "mine" and metrics.get("rows") and cfg.mine.negatives:
        found = {"negatives_found": metrics["negatives"] / (sum(metrics["rows"].values()) * cfg.mine.negatives)}
    return found


def compared(
    cfg: RunConfig, assumed: Assumptions, plan: Callable[[Assumptions], Iterable[StageEstimate]]
) -> list[Comparison]:
    """Every finished stage of the run.

    Args:
        cfg: the run.
        assumed: assumptions before anything is known.
        plan: the run's plan under given assumptions.
    """
    comparisons, known = [], assumed
    for estimate in plan(assumed):
        facts = measured(cfg, estimate.name)
        if facts is not None:
            later = next(e for e in plan(known) if e.name == estimate.name)
            comparisons.append(Comparison(estimate, later, facts))
        known = known.replaced(**learned(cfg, estimate.name))
    return comparisons
