"""Progress as metrics of Ray, which every node exports to Prometheus; `cluster/grafana/qwen3emb.json` shows them.

Ray puts `ray_` before the names. They are set in whichever process reports progress: a stage's driver, and the first
rank of a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from qwen3emb.core.event_files import Attempt
from qwen3emb.core.location import redacted

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

__all__ = ["FIGURES", "TAGS", "export_progress", "gauges"]

TAGS = ("run", "stage", "work")
"""Labels of every metric: the run's storage, the stage, and what is counted, e.g. "queries embedded"."""

FIGURES = {
    "done": ("qwen3emb_rows_done", "Rows of this work that are done, those of earlier attempts included."),
    "total": ("qwen3emb_rows_total", "Rows of this work in all."),
    "rate": ("qwen3emb_rows_per_second", "Rows per second since this process began this work."),
    "loss": ("qwen3emb_training_loss", "Loss of the latest step."),
    "tokens_per_second_per_worker": (
        "qwen3emb_training_tokens_per_second_per_worker",
        "Tokens per second and worker since this process began to train.",
    ),
}
"""Figure of an event of progress -> name of its metric, and what it is."""


@cache
def gauges() -> dict[str, Gauge]:
    """Figure -> its metric, made once a process."""
    from ray.util.metrics import Gauge  # here: whoever imports this module may have no use for Ray, as `--dry-run`

    return {figure: Gauge(name, description, TAGS) for figure, (name, description) in FIGURES.items()}


def export_progress(attempt: Attempt, event: Mapping[str, Any]) -> None:
    """Set the metrics of an event of progress, where this process is connected to Ray."""
    import ray

    if not ray.is_initialized():
        return
    tags = {"run": str(redacted(attempt.run)), "stage": attempt.stage, "work": str(event["work"])}
    for figure, gauge in gauges().items():
        if event.get(figure) is not None:
            gauge.set(float(event[figure]), tags)
