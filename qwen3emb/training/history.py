"""Metrics of a training run: one row per step, written as metrics.jsonl, and a progress line."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from qwen3emb.core.events import report
from qwen3emb.core.storage import Storage
from qwen3emb.training.tensorboard import OF_THE_DATA, write_events

__all__ = ["History"]

_FILE = "metrics.jsonl"
_EVERY_SECONDS = 5.0


class History:
    """Metrics of a run, one row per step. Checkpoints hold the rows, so that a resumed run continues them."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows = rows or []
        self._shown = 0.0
        self._first = len(self.rows)
        self._before = float(self.rows[-1]["seconds"]) if self.rows else 0.0
        self._on_board = len(self.rows)

    def add(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        """Add the row of a finished step.

        Args:
            step: 0-based; the row's `step` is 1-based.
            metrics: of the step. NaN and infinity become null, so that every reader of JSON can read them.
            seconds: since this process began training. The row's `seconds` also count the processes of the run
                before it.
        """
        figures = {k: _figure(v) if isinstance(v, float) else v for k, v in metrics.items()}
        self.rows.append({"step": step + 1, **figures, "seconds": round(self._before + seconds, 2)})

    def validated(self, step: int, metrics: dict[str, float], patience: int = 0) -> None:
        """Add validation metrics to the last row, and decide whether the run stops early.

        Args:
            step: 1-based, that of the last row.
            metrics: names begin with `dev_`; the first one, higher is better, tells which checkpoint is best.
            patience: stop after so many validations in a row that are no better than the best before; 0 = never.
        """
        assert self.rows[-1]["step"] == step, "validation follows its step"
        self.rows[-1].update(metrics)
        if metrics:
            self.rows[-1]["judged"] = next(iter(metrics.values()))
        judged = [row["judged"] for row in self.rows if "judged" in row]
        since_best = len(judged) - 1 - judged.index(max(judged)) if judged else 0
        self.rows[-1]["stopped"] = bool(patience and since_best >= patience)

    @property
    def stopped(self) -> bool:
        """Whether the last validation ended the run early."""
        return bool(self.rows and self.rows[-1].get("stopped"))

    def best_step(self) -> int | None:
        """The step (1-based) with the best validation, the earliest of equals; None without validations."""
        judged = [row for row in self.rows if "judged" in row]
        return int(max(judged, key=lambda row: row["judged"])["step"]) if judged else None

    def latest(self) -> dict[str, Any]:
        """A copy of the last row."""
        return dict(self.rows[-1])

    def steps(self) -> int:
        """Number of finished steps."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def summary(self) -> dict[str, Any]:
        """Losses of the first and last step, best step, skipped steps, speed, and metrics by dataset and validation."""
        speed = {}
        seconds = self.rows[-1]["seconds"]
        if seconds > 0:
            tokens = sum(r["tokens"] for r in self.rows)
            speed = {"tokens_per_second_per_worker": round(tokens / seconds, 1)}
        dev = {str(r["step"]): {k: v for k, v in r.items() if k.startswith("dev_")} for r in self.rows}
        return {
            "first_loss": self.rows[0]["loss"],
            "last_loss": self.rows[-1]["loss"],
            "best_step": self.best_step(),
            "skipped_steps": int(sum(r.get("skipped", 0.0) for r in self.rows)),
            **speed,
            "datasets": self._by_dataset(),
            "validation": {step: metrics for step, metrics in dev.items() if metrics},
        }

    def _by_dataset(self) -> dict[str, dict[str, float]]:
        """For each dataset its number of batches, and means of its metrics `OF_THE_DATA` over their second half."""
        summaries = {}
        for name in dict.fromkeys(r["dataset"] for r in self.rows if "dataset" in r):
            rows = [r for r in self.rows if r.get("dataset") == name]
            late = rows[len(rows) // 2 :]
            figures = {k: [r[k] for r in late if r.get(k) is not None] for k in OF_THE_DATA}
            means = {k: round(sum(v) / len(v), 4) for k, v in figures.items() if v}
            summaries[name] = {"batches": float(len(rows)), **means}
        return summaries

    def show(self, steps: int, force: bool = False) -> None:
        """A progress line on standard error and in the run's events, at most every few seconds."""
        now = time.monotonic()
        if not force and now - self._shown < _EVERY_SECONDS and self.steps() not in (1, steps):
            return
        self._shown = now
        row, recent = self.rows[-1], self.rows[self._first :]
        seconds = row["seconds"] - self._before
        per_step = seconds / max(1, len(recent))
        rate = row["rows"] / per_step if per_step else 0.0
        tokens = sum(r["tokens"] for r in recent) / max(1e-9, seconds)
        figures = {"step": row["step"], "loss": row["loss"], "tokens_per_second_per_worker": round(tokens, 1)}
        figures |= {name: value for name, value in row.items() if name.startswith("dev_")}
        report("rows trained", row["step"] * row["rows"], steps * row["rows"], **figures)
        loss = math.nan if row["loss"] is None else row["loss"]
        dev = " ".join(f"{k} {v:.3f}" for k, v in row.items() if k.startswith("dev_"))
        print(
            f"step {row['step']}/{steps} loss {loss:.3f} pos {row['positive']:.2f} hardest {row['hardest']:.2f} "
            f"lr {row['lr']:.1e} {rate:.1f} rows/s {tokens:.0f} tokens/s/worker "
            f"padding {row.get('padding', 0.0):.1%} eta {per_step * (steps - row['step']):.0f}s {dev}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    def write(self, out: Storage) -> None:
        """Write all rows as metrics.jsonl, and those since the last call for TensorBoard."""
        out.write_bytes(_FILE, "".join(json.dumps(r) + "\n" for r in self.rows).encode())
        write_events(out, self.rows[self._on_board :])
        self._on_board = len(self.rows)

    @classmethod
    def read(cls, out: Storage) -> History:
        """The history that `write` wrote; an empty one where there is none."""
        if not out.exists(_FILE):
            return cls()
        return cls([json.loads(line) for line in out.read_bytes(_FILE).splitlines()])


def _figure(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
