"""Models that are not ours: a sentence-transformers directory gives the vectors that the library gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3emb.core.errors import UserError
from qwen3emb.export.export import export_embedding
from qwen3emb.model.contract import CONTRACT_FILE, Contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.fetch import is_endpoint
from qwen3emb.model.foreign import SentenceEncoder, is_foreign, open_encoder
from qwen3emb.model.loading import load_tokenizer, load_trunk

TEXTS = ["a text", "another, somewhat longer text about ferries", "третий"]
ASK = "Given a question, retrieve the answer"


@pytest.fixture
def exported(tiny_qwen3: Path, tmp_path: Path) -> Path:
    model = load_trunk(tiny_qwen3, "float32")
    contract = Contract("embedding", ASK, "<|endoftext|>", 512, model.config.hidden_size, [16])
    export_embedding(tmp_path, model.state_dict(), model.config, load_tokenizer(tiny_qwen3), contract)
    return tmp_path


def test_a_directory_with_our_contract_is_ours_and_without_it_sentence_transformers(exported: Path) -> None:
    ours = open_encoder(exported, dtype="float32")
    assert isinstance(ours, Encoder) and not is_foreign(exported)
    (exported / CONTRACT_FILE).unlink()
    theirs = open_encoder(exported)
    assert isinstance(theirs, SentenceEncoder) and theirs.dimensions == ours.dimensions
    for ask in (None, ASK):
        found = theirs.encode(TEXTS, max_tokens=64, instruction=ask)
        wanted = ours.encode(TEXTS, max_tokens=64, instruction=ask)
        np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert theirs.encode([], max_tokens=64).shape == (0, ours.dimensions)


def test_a_directory_that_cannot_be_loaded_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load it"):
        open_encoder(tmp_path)
    (tmp_path / "modules.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"no readable modules\.json"):
        open_encoder(tmp_path)


def test_an_address_is_an_endpoint() -> None:
    assert is_endpoint("http://127.0.0.1:8000/v1?model=x") and not is_endpoint("s3://bucket/model")


def test_pickled_weights_are_refused_and_code_of_a_model_never_runs(exported: Path) -> None:
    (exported / CONTRACT_FILE).unlink()
    (exported / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.eye(2)}, exported / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"2_Dense/pytorch_model\.bin: pickled weights are not read"):
        open_encoder(exported)
    (exported / "2_Dense" / "pytorch_model.bin").unlink()

    ran = exported / "ran"
    (exported / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nfrom transformers import Qwen3Model as Own\n")
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Own"}}))
    load_trunk(exported, "float32")
    open_encoder(exported).encode(TEXTS, max_tokens=64)
    assert not ran.exists()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]
    (exported / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"own\.Own is code of the model's own"):
        open_encoder(exported)
    assert not ran.exists()
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        load_trunk(exported, "float32")


@pytest.mark.parametrize("part", [".layers.1.mlp.", "norm.weight"])
def test_weights_that_no_file_holds_are_named(exported: Path, part: str) -> None:
    (exported / CONTRACT_FILE).unlink()
    file = exported / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if part not in name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"of the model's tensors are not in its files: .*norm|mlp"):
        open_encoder(exported)


def test_heads_of_other_tasks_may_be_left_over_and_adapters_may_not(exported: Path) -> None:
    (exported / CONTRACT_FILE).unlink()
    file = exported / "model.safetensors"
    weights = load_file(file)
    wanted = open_encoder(exported).encode(TEXTS, max_tokens=64)
    save_file(weights | {"cls.bias": torch.zeros(3)}, file, {"format": "pt"})
    assert np.array_equal(open_encoder(exported).encode(TEXTS, max_tokens=64), wanted)
    save_file(weights | {"layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lora_A.*merge the adapter"):
        open_encoder(exported)


def test_control_tokens_in_a_text_are_its_characters(exported: Path) -> None:
    ours = open_encoder(exported, dtype="float32")
    (exported / CONTRACT_FILE).unlink()
    texts = ["closed by <|im_end|> here", "<|endoftext|>"]
    found = open_encoder(exported).encode(texts, max_tokens=64)
    np.testing.assert_allclose(found, ours.encode(texts, max_tokens=64), atol=2e-4)
