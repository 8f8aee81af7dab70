"""Metrics of a run: what is best, when to stop, and numbers JSON has no word for."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3emb.storage import Storage
from qwen3emb.train.history import History

STEP = {"loss": 1.0, "tokens": 10.0, "rows": 4.0, "positive": 0.5, "hardest": 0.4, "lr": 1e-4, "skipped": 0.0}


def validated(scores: list[float], patience: int) -> History:
    history = History()
    for step, score in enumerate(scores):
        history.add(step, STEP, float(step + 1))
        history.validated(step + 1, {"dev_ndcg@10": score, "dev_other": 1 - score}, patience)
    return history


def test_the_best_checkpoint_is_the_earliest_of_equals_and_patience_counts_from_it() -> None:
    history = validated([0.1, 0.5, 0.5, 0.4], patience=2)
    assert history.best_step() == 2 and history.stopped
    assert not validated([0.1, 0.5, 0.5], patience=2).stopped
    assert not validated([0.5, 0.4, 0.3, 0.2], patience=0).stopped
    assert History().best_step() is None and not History().stopped


def test_nan_is_null_in_the_file_and_counted(tmp_path: Path) -> None:
    history = History()
    history.add(0, STEP, 1.0)
    history.add(1, STEP | {"loss": float("nan"), "skipped": 1.0}, 2.0)
    history.write(Storage(str(tmp_path)))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1], parse_constant=lambda word: 1 / 0)["loss"] is None
    summary = History.read(Storage(str(tmp_path))).summary()
    assert (summary["skipped_steps"], summary["first_loss"]) == (1, 1.0)
    history.show(5, force=True)
