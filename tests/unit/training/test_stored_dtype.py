"""Checkpoints of `optimizer.dtype: auto` are stored as the model that the training starts from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3emb.config.training import OptimizerConfig, TrainEmbeddingConfig
from qwen3emb.training.tasks import EmbeddingTask


@pytest.mark.parametrize(("dtype", "wanted"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_weights_are_rounded_once_to_the_dtype_of_the_start(
    tiny_qwen3: Path, tmp_path: Path, dtype: str, wanted: torch.dtype
) -> None:
    start = tmp_path / "start"
    shutil.copytree(tiny_qwen3, start)
    stored = {name: tensor.bfloat16() for name, tensor in load_file(start / "model.safetensors").items()}
    save_file(stored, start / "model.safetensors", {"format": "pt"})
    config = json.loads((start / "config.json").read_text()) | {"dtype": "bfloat16"}
    (start / "config.json").write_text(json.dumps(config))
    optimizer = OptimizerConfig(dtype=dtype)  # type: ignore[arg-type]
    task = EmbeddingTask(TrainEmbeddingConfig(steps=1, optimizer=optimizer), start, "<|endoftext|>", "find it", None)
    model = task.load("float32")
    weights = {name: tensor + 1 / 3 for name, tensor in model.state_dict().items()}
    task.export(tmp_path / "out", weights, model.config)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert len(written) == len(weights)
    for name, tensor in weights.items():
        [match] = [name_of for name_of in written if name_of.removeprefix("model.") == name]
        assert written[match].dtype == wanted and torch.equal(written[match], tensor.to(wanted))
