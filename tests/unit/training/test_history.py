"""Metrics of a run: what is best, when to stop, and numbers JSON has no word for."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from qwen3emb.core.storage import Storage
from qwen3emb.training.history import History

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


def test_every_step_is_on_the_board_once_also_after_a_resume(tmp_path: Path) -> None:
    """Steps 1 and 2 are written with a checkpoint; step 3 is lost with its process and computed again with step 4."""
    out = Storage(str(tmp_path))
    history = History()
    for step in range(2):
        history.add(step, STEP | {"dataset": "docstrings", "loss": 2.0 - step}, 1.0)
    history.validated(2, {"dev_mrr": 0.5})
    history.write(out)
    for resumed_loss in (9.0, 0.25):
        resumed = History(list(history.rows))
        for step in (2, 3):
            resumed.add(step, STEP | {"dataset": "synthetic", "loss": resumed_loss}, 1.0)
        resumed.write(out)
    found: dict[tuple[str, int], float] = {}
    for file in sorted((tmp_path / "tensorboard").iterdir()):
        for payload in payloads(file.read_bytes()):
            event = event_pb2.Event.FromString(payload)
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    assert {k: v for k, v in found.items() if "loss" in k[0]} == {
        ("docstrings/loss", 1): 2.0,
        ("docstrings/loss", 2): 1.0,
        ("synthetic/loss", 3): 0.25,
        ("synthetic/loss", 4): 0.25,
    }
    assert found["dev/mrr", 2] == 0.5
    assert found["train/lr", 4] == pytest.approx(1e-4)


def payloads(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), payload, its checksum (4)."""
    while content:
        [size] = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + size]
        content = content[16 + size :]


def test_speed_after_a_resume_is_that_of_all_steps_over_all_their_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 steps of 10 tokens in 4 s, then killed; 2 more in 1 s: 40 tokens in 5 s. At 9856602 it said 10 tokens/s."""
    history = History()
    for step, seconds in enumerate((2.0, 4.0)):
        history.add(step, STEP, seconds)
    resumed = History(list(history.rows))
    resumed.add(2, STEP, 0.5)
    resumed.add(3, STEP, 1.0)
    assert resumed.summary()["tokens_per_second_per_worker"] == 8.0
    resumed.show(6, force=True)
    said = capsys.readouterr().err
    assert "8.0 rows/s 20 tokens/s/worker" in said and "eta 1s" in said, "the line is of this process"
    resumed.write(Storage(str(tmp_path)))
    again = History(History.read(Storage(str(tmp_path))).rows)
    again.add(4, STEP, 3.0)
    assert [row["seconds"] for row in again.rows] == [2.0, 4.0, 4.5, 5.0, 8.0]
    assert again.summary()["tokens_per_second_per_worker"] == 6.2  # 50 / 8 = 6.25, to even


def test_what_is_said_about_data_is_summed_up_by_data_set(tmp_path: Path) -> None:
    history = History()
    for step, (name, loss) in enumerate([("a", 4.0), ("b", 1.0), ("a", 2.0), ("a", 3.0), ("a", float("nan"))]):
        history.add(step, STEP | {"dataset": name, "loss": loss}, 1.0)
    found = history.summary()["datasets"]
    assert found["a"] == {"batches": 4.0, "loss": 3.0, "positive": 0.5, "hardest": 0.4}
    assert found["b"]["loss"] == 1.0
