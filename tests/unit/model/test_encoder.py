"""A vector depends on its text only, and is the same in sentence-transformers: the heart of the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.core.errors import UserError
from qwen3emb.export.export import export_embedding
from qwen3emb.model.contract import CONTRACT_FILE, Contract, read_contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.packing import budgeted

TEXTS = [
    "how do I read a file line by line in Python?",
    "yes",
    "def read(path):\n    return open(path).read()",
    "如何打开文件? " * 20,
    "",
]
INSTRUCTION = "Given a question, find the function"


@pytest.fixture(scope="module")
def exported(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    encoder = Encoder(tiny_qwen3, end_token="<|endoftext|>", dtype="float32")
    contract = Contract("embedding", INSTRUCTION, "<|endoftext|>", 1024, encoder.dimensions, [16])
    config = encoder.trunk.config
    export_embedding(folder, encoder.trunk.state_dict(), config, encoder.template.tokenizer, contract)
    return folder


def test_a_vector_does_not_depend_on_its_batch(exported: Path) -> None:
    encoder = Encoder(exported, dtype="float32")
    together = encoder.encode(TEXTS, max_tokens=100, instruction=INSTRUCTION)
    alone = np.concatenate([encoder.encode([t], max_tokens=100, instruction=INSTRUCTION) for t in TEXTS])
    tight = encoder.encode(TEXTS, max_tokens=100, instruction=INSTRUCTION, token_budget=30)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, tight, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sentence_transformers_gives_the_same_vectors(exported: Path, side: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(exported), device="cpu", model_kwargs={"dtype": torch.float32})
    model.tokenizer.padding_side = side
    encoder = Encoder(exported, dtype="float32")
    for prompt, instruction in (("query", INSTRUCTION), ("document", None)):
        theirs = model.encode(TEXTS, prompt_name=prompt)
        ours = encoder.encode(TEXTS, max_tokens=1024, instruction=instruction)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_smaller_dimension_is_the_normalised_prefix(exported: Path) -> None:
    encoder = Encoder(exported, dtype="float32")
    full, short = (encoder.encode(TEXTS, max_tokens=100, dimensions=d) for d in (None, 16))
    np.testing.assert_allclose(short, full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True), atol=1e-5)
    with pytest.raises(UserError, match="dimensions 65"):
        encoder.encode(TEXTS, max_tokens=100, dimensions=65)


def test_what_cannot_be_loaded_or_encoded_is_one_sentence(exported: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="end token"):
        Encoder(tiny_qwen3)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        Encoder(tmp_path, end_token="<|endoftext|>")
    with pytest.raises(UserError, match="context of 1024"):
        Encoder(exported).encode(["x"], max_tokens=1025)


def test_the_export_carries_its_contract_and_the_legacy_keys(exported: Path) -> None:
    import json

    contract = read_contract(exported)
    assert contract is not None and contract.end_token == "<|endoftext|>" and contract.mrl_dims == [16]
    assert contract.prompts == {"query": f"Instruct: {INSTRUCTION}\nQuery:", "document": ""} and contract.normalised
    config = json.loads((exported / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["matryoshka_dimensions"] == [16, 64]
    assert config["torch_dtype"] == "float32"
    assert json.loads((exported / "tokenizer_config.json").read_text())["tokenizer_class"] != "TokenizersBackend"


@pytest.mark.parametrize("change", [{"pooling": "mean"}, {"prompts": {"query": "query: "}}, {"normalised": False}])
def test_a_model_of_another_prompt_or_pooling_is_refused(
    exported: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    import json
    import shutil

    shutil.copytree(exported, tmp_path / "model")
    file = tmp_path / "model" / CONTRACT_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match="another prompt or pooling"):
        Encoder(tmp_path / "model")


@given(lengths=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(1, 80))
def test_budgeted_groups_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(budgeted(lengths, budget))
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in g) <= budget or len(g) == 1 for g in groups)
