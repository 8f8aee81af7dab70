"""Metrics of a training run as TensorBoard events."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3emb.core.storage import Storage

__all__ = ["FOLDER", "OF_THE_DATA", "write_events"]

FOLDER = "tensorboard"
OF_THE_DATA = ("loss", "masked", "positive", "hardest")
_PLACE = ("step", "seconds", "judged")


def write_events(out: Storage, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` of metrics as one file of events; `tensorboard --logdir OUT/tensorboard` shows all files.

    Its name comes from the first step, so that a resumed run writes over what it computes again.

    Args:
        out: the stage's folder.
        rows: as in metrics.jsonl; metrics of a step are tagged `train/`, those of validation `dev/`, and those in
            `OF_THE_DATA` `DATASET/`, because a global batch is of one dataset.
    """
    from tensorboardX import SummaryWriter

    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as board:
            for row in rows:
                for tag, value in _figures(row).items():
                    board.add_scalar(tag, value, row["step"])
        [events] = Path(folder).iterdir()
        out.write_bytes(f"{FOLDER}/events.out.tfevents.{rows[0]['step']:08d}.qwen3emb", events.read_bytes())


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """TensorBoard tag -> value of one row of metrics."""
    out = {}
    for key, value in row.items():
        if key in _PLACE or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if key.startswith("dev_"):
            out[f"dev/{key.removeprefix('dev_').replace('@', '_')}"] = float(value)  # no @ in tags
        elif key in OF_THE_DATA and "dataset" in row:
            out[f"{row['dataset']}/{key}"] = float(value)
        else:
            out[f"train/{key}"] = float(value)
    return out
