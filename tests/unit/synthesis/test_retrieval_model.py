"""The retrieval model of `synthesize` is opened with the same refusals as every other model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3emb.config.run import ModelsConfig
from qwen3emb.core.errors import UserError
from qwen3emb.model.encoder import Encoder
from qwen3emb.synthesis.retrieval_model import embedded, retrieval_model


def models(folder: Path) -> ModelsConfig:
    return ModelsConfig(base=str(folder), retrieval=str(folder))


def sentence_model(folder: Path, own: str = "sentence_transformers.models.Pooling") -> Path:
    kinds = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", own)]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        retrieval_model(models(folder))
    (folder / "model.safetensors").write_bytes(b"")  # the body's, but a module has pickles of its own
    torch.save({}, folder / "1_Pooling" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"1_Pooling.*pickled weights are not read"):
        retrieval_model(models(folder))


def test_code_in_the_directory_never_runs(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model", own="own_module.Module")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "own_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"own_module\.Module is code of the model's own"):
        retrieval_model(models(folder))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"owner/name.*fetch-model"):
        retrieval_model(models(Path("owner/name")))


def test_a_decoder_finds_personas_too(tiny_qwen3: Path) -> None:
    texts = ["a kettle boils water", "word " * 3000, ""]
    found = embedded(retrieval_model(models(tiny_qwen3)), texts)
    alone = Encoder(tiny_qwen3, end_token="<|endoftext|>", dtype="float32").encode(texts, max_tokens=1024)
    np.testing.assert_allclose(found, alone, atol=1e-5)
