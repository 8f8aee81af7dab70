"""Metrics of a training run: one row per step, written as metrics.jsonl, and a progress line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from qwen3emb.storage import Storage

__all__ = ["History"]

_FILE = "metrics.jsonl"
_EVERY_SECONDS = 5.0


class History:
    """Rows of metrics, resumable: the rows travel inside the checkpoint."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows = rows or []
        self._shown = 0.0
        self._first = len(self.rows)

    def add(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Metrics of a finished step (0-based); `seconds` since this process began training."""
        row = {"step": step + 1, **{k: round(v, 6) for k, v in metrics.items()}, "seconds": round(seconds, 2)}
        self.rows.append(row)

    def validated(self, step: int, metrics: dict[str, float]) -> None:
        """Validation metrics of a step that is already there."""
        assert self.rows[-1]["step"] == step, "validation follows its step"
        self.rows[-1].update(metrics)

    def latest(self) -> dict[str, Any]:
        """The last row."""
        return dict(self.rows[-1])

    def steps(self) -> int:
        """Steps done."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def summary(self) -> dict[str, Any]:
        """First and last loss, speed, and validation metrics by step."""
        speed = {}
        tail = [r for r in self.rows if r["seconds"] > 0]
        if tail:
            tokens = sum(r["tokens"] for r in self.rows)
            speed = {"tokens_per_second_per_worker": round(tokens / max(r["seconds"] for r in tail), 1)}
        dev = {str(r["step"]): {k: v for k, v in r.items() if k.startswith("dev_")} for r in self.rows}
        return {
            "first_loss": self.rows[0]["loss"],
            "last_loss": self.rows[-1]["loss"],
            **speed,
            "validation": {step: found for step, found in dev.items() if found},
        }

    def show(self, steps: int, force: bool = False) -> None:
        """A progress line on standard error, at most every few seconds."""
        now = time.monotonic()
        if not force and now - self._shown < _EVERY_SECONDS and self.steps() not in (1, steps):
            return
        self._shown = now
        row, mine = self.rows[-1], self.rows[self._first :]
        per_step = row["seconds"] / max(1, len(mine))
        rate = row["rows"] / per_step if per_step else 0.0
        tokens = sum(r["tokens"] for r in mine) / max(1e-9, row["seconds"])
        dev = " ".join(f"{k} {v:.3f}" for k, v in row.items() if k.startswith("dev_"))
        print(
            f"step {row['step']}/{steps} loss {row['loss']:.3f} pos {row['positive']:.2f} hardest {row['hardest']:.2f} "
            f"lr {row['lr']:.1e} {rate:.1f} rows/s {tokens:.0f} tokens/s/worker "
            f"eta {per_step * (steps - row['step']):.0f}s {dev}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    def write(self, out: Storage) -> None:
        """Write all rows as metrics.jsonl."""
        out.write_bytes(_FILE, "".join(json.dumps(r) + "\n" for r in self.rows).encode())

    @classmethod
    def read(cls, out: Storage) -> History:
        """What `write` wrote; empty where nothing is there."""
        if not out.exists(_FILE):
            return cls()
        return cls([json.loads(line) for line in out.read_bytes(_FILE).splitlines()])
