"""Shapes: the table against the numbers on the model cards, and what a folder's config.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.planning.models import model_shape
from qwen3emb.pipeline.planning.shapes import KNOWN, shape_of

# Model cards of Qwen3: parameters, and those without embeddings; of SmolLM2 the size of its name.
CARDS = [
    ("Qwen/Qwen3-0.6B", 0.6e9, 0.44e9),
    ("Qwen/Qwen3-4B", 4.0e9, 3.6e9),
    ("Qwen/Qwen3-8B", 8.2e9, 6.95e9),
    ("Qwen/Qwen3-32B", 32.8e9, 31.2e9),
    ("HuggingFaceTB/SmolLM2-135M", 135e6, 106e6),
]


@pytest.mark.parametrize(("name", "whole", "without_embeddings"), CARDS)
def test_the_table_has_the_parameters_of_the_model_cards(name: str, whole: float, without_embeddings: float) -> None:
    shape = KNOWN[name]
    assert shape.parameters() == pytest.approx(whole, rel=0.01)
    assert shape.parameters(head=False) - shape.embedding_parameters == pytest.approx(without_embeddings, rel=0.01)


def test_the_released_embedding_models_have_no_head() -> None:
    assert KNOWN["Qwen/Qwen3-Embedding-8B"].parameters(head=False) == pytest.approx(7.57e9, rel=0.001)


def test_a_folder_needs_no_weights(tiny_qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_qwen3 / "config.json").read_text())
    shape = model_shape(str(tmp_path))
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2, 64, 4, 2, 16)
    assert shape.head_norms and shape.tied and not shape.float8


def test_an_fp8_model_says_so_in_its_config() -> None:
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
        "quantization_config": {"quant_method": "fp8"},
    }
    shape = shape_of(config)
    assert shape is not None and shape.float8
    assert shape_of({key: value for key, value in config.items() if key != "hidden_size"}) is None


def test_a_prepared_hub_model_is_read_and_a_known_one_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3EMB_CACHE", str(tmp_path))
    assert model_shape("Qwen/Qwen3-8B-Base@1a2b3c") == KNOWN["Qwen/Qwen3-8B"]
    folder = tmp_path / "models" / "Qwen--Qwen3-8B-Base"
    folder.mkdir(parents=True)
    smaller = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    (folder / "config.json").write_text(json.dumps(smaller | {"vocab_size": 10}))
    shape = model_shape("Qwen/Qwen3-8B-Base")
    assert shape is not None and shape.layers == 1


def test_a_server_has_no_shape_that_matters() -> None:
    assert model_shape("http://host:8000/v1?model=any") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is not known: it is not on this machine"), ("{", "is not JSON"), ("{}", "names no layers")],
)
def test_what_cannot_be_planned_is_one_sentence(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3EMB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=said):
        model_shape(str(folder) if content is not None else "someone/something-3b")
