"""A model is what its files hold: no parameter is drawn at random, and the names that wrappers add are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3emb.errors import UserError
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.loading import load_causal, load_tokenizer, load_trunk
from qwen3emb.model.reranker import Reranker

Weights = dict[str, torch.Tensor]

TEXTS = ["a kettle boils water", "如何打开文件?"]


def changed(source: Path, folder: Path, change: Callable[[Weights], Weights], **config: object) -> Path:
    """A copy of the model whose tensors went through `change`."""
    shutil.copytree(source, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def sharded(folder: Path) -> Path:
    """The same weights in two files and an index, every second tensor in each."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({n: weights[n] for n, place in places.items() if place == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def prefixed(prefix: str, bare: bool = False) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + (k.removeprefix("model.") if bare else k): v for k, v in weights.items()}


@lru_cache
def vectors(folder: Path) -> np.ndarray:
    return Encoder(folder, end_token="<|endoftext|>", dtype="float32").encode(TEXTS, max_tokens=64)


@lru_cache
def scores(folder: Path) -> np.ndarray:
    return Reranker(folder, dtype="float32").score("kettle", TEXTS, max_tokens=256)


def untied(weights: Weights) -> Weights:
    head = torch.randn(weights["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(3))
    return weights | {"lm_head.weight": head}


@pytest.mark.parametrize(
    ("prefix", "bare", "in_shards"),
    [
        ("", True, True),
        ("encoder.", False, False),
        ("encoder.", True, True),
        ("base_model.model.", False, True),
        ("0.auto_model.", True, False),
        ("module.", False, True),
        ("module.encoder.", False, False),
        ("model.model.", True, False),
    ],
)
def test_wrapped_names_are_read_exactly(
    tiny_qwen3: Path, tmp_path: Path, prefix: str, bare: bool, in_shards: bool
) -> None:
    wrapped = changed(tiny_qwen3, tmp_path / "wrapped", prefixed(prefix, bare))
    if in_shards:
        sharded(wrapped)
    assert np.array_equal(vectors(wrapped), vectors(tiny_qwen3))
    assert np.array_equal(scores(wrapped), scores(tiny_qwen3))


@pytest.mark.parametrize("prefix", ["", "encoder.", "base_model.model."])
def test_a_head_of_its_own_is_read_under_any_wrapping(tiny_qwen3: Path, tmp_path: Path, prefix: str) -> None:
    plain = changed(tiny_qwen3, tmp_path / "plain", untied, tie_word_embeddings=False)
    wrapped = changed(plain, tmp_path / "wrapped", prefixed(prefix)) if prefix else plain
    assert np.array_equal(scores(wrapped), scores(plain))
    assert not np.allclose(scores(plain), scores(tiny_qwen3))
    assert np.array_equal(vectors(wrapped), vectors(tiny_qwen3))  # the head is not part of the trunk


def test_a_wrapped_head_beside_a_bare_trunk_is_read(tiny_qwen3: Path, tmp_path: Path) -> None:
    """As a module of our own may look: self.encoder is the trunk, self.lm_head the head."""
    plain = changed(tiny_qwen3, tmp_path / "plain", untied, tie_word_embeddings=False)

    def odd(weights: Weights) -> Weights:
        return {k if k == "lm_head.weight" else "encoder." + k.removeprefix("model."): v for k, v in weights.items()}

    assert np.array_equal(scores(changed(plain, tmp_path / "odd", odd)), scores(plain))


def test_tied_embeddings_stored_under_the_heads_name_are_read(tiny_qwen3: Path, tmp_path: Path) -> None:
    """safetensors' save_model keeps the first of two shared names, which is the head's."""

    def renamed(weights: Weights) -> Weights:
        return {"lm_head.weight" if k == "model.embed_tokens.weight" else k: v for k, v in weights.items()}

    other = changed(tiny_qwen3, tmp_path / "other", renamed)
    assert np.array_equal(vectors(other), vectors(tiny_qwen3))
    assert np.array_equal(scores(other), scores(tiny_qwen3))


@pytest.mark.parametrize("load", [load_trunk, load_causal])
def test_a_lost_tensor_is_named(tiny_qwen3: Path, tmp_path: Path, load: Callable[[Path, str], object]) -> None:
    lost = changed(
        tiny_qwen3, tmp_path / "lost", lambda w: {k: v for k, v in w.items() if ".layers.1." not in k or "norm" in k}
    )
    with pytest.raises(UserError, match=r"7 .*not in its files.*layers\.1\.mlp\.down_proj\.weight.* and 4 more"):
        load(lost, "float32")


def test_a_lost_embedding_or_a_lost_shard_is_named(tiny_qwen3: Path, tmp_path: Path) -> None:
    bare = changed(
        tiny_qwen3, tmp_path / "bare", lambda w: {k: v for k, v in w.items() if k != "model.embed_tokens.weight"}
    )
    for load in (load_trunk, load_causal):
        with pytest.raises(UserError, match=r"not in its files.*embed_tokens\.weight"):
            load(bare, "float32")
    shutil.copytree(tiny_qwen3, tmp_path / "shards")
    sharded(tmp_path / "shards")
    (tmp_path / "shards" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors"):
        load_trunk(tmp_path / "shards", "float32")


def test_a_trunk_alone_is_an_embedding_model_and_no_reranker(tiny_qwen3: Path, tmp_path: Path) -> None:
    """The layout that Qwen3-Embedding-8B is published in."""
    headless = changed(tiny_qwen3, tmp_path / "headless", prefixed("", bare=True), tie_word_embeddings=False)
    assert np.array_equal(vectors(headless), vectors(tiny_qwen3))
    for load in (lambda: load_causal(headless, "float32"), lambda: Reranker(headless)):
        with pytest.raises(UserError, match=r"language-model head.*not in its files.*name the base causal LM"):
            load()


def test_a_head_that_differs_from_the_embeddings_it_is_said_to_be_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    both = changed(tiny_qwen3, tmp_path / "both", lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]})
    assert np.array_equal(scores(both), scores(tiny_qwen3))
    other = changed(tiny_qwen3, tmp_path / "other", untied)  # the config still says that they are one
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_causal(other, "float32")


@pytest.mark.parametrize("load", [load_trunk, load_causal])
def test_tensors_that_would_be_dropped_are_named(
    tiny_qwen3: Path, tmp_path: Path, load: Callable[[Path, str], object]
) -> None:
    def adapted(weights: Weights) -> Weights:
        names = [f"layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]
        loras = {f"base_model.model.model.{name}": torch.zeros(2, 2) for name in names}
        return {f"base_model.model.{k}": v for k, v in weights.items()} | loras

    with pytest.raises(UserError, match=r"lora_A\.weight.*merge the adapter"):
        load(changed(tiny_qwen3, tmp_path / "lora", adapted), "float32")
    dense = changed(tiny_qwen3, tmp_path / "dense", lambda w: w | {"linear.weight": torch.zeros(4, 64)})
    with pytest.raises(UserError, match=r"does not know: linear\.weight"):
        load(dense, "float32")
    towers = changed(
        tiny_qwen3,
        tmp_path / "towers",
        lambda w: prefixed("query.")(w) | prefixed("document.")({k: v + 1 for k, v in w.items()}),
    )
    with pytest.raises(UserError, match=r"not in its files.*does not know"):
        load(towers, "float32")
    twice = changed(tiny_qwen3, tmp_path / "twice", lambda w: w | {"norm.weight": torch.zeros(64)})
    with pytest.raises(UserError, match=r"norm\.weight"):
        load(twice, "float32")


def test_an_adapter_directory_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_qwen3, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="merge the adapter"):
        load_trunk(tmp_path / "adapter", "float32")


def test_heads_and_old_buffers_are_no_part_of_a_trunk(tiny_qwen3: Path, tmp_path: Path) -> None:
    extra = {"score.weight": torch.zeros(1, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    more = changed(tiny_qwen3, tmp_path / "more", lambda w: w | extra)
    assert np.array_equal(vectors(more), vectors(tiny_qwen3))
    with pytest.raises(UserError, match=r"does not know: score\.weight"):
        load_causal(more, "float32")


@pytest.mark.parametrize("load", [load_trunk, load_causal])
def test_another_shape_or_a_broken_file_is_named(
    tiny_qwen3: Path, tmp_path: Path, load: Callable[[Path, str], object]
) -> None:
    def narrow(weights: Weights) -> Weights:
        return weights | {"model.norm.weight": torch.zeros(32)}

    with pytest.raises(UserError, match=r"norm\.weight is \(32,\).*\(64,\)"):
        load(changed(tiny_qwen3, tmp_path / "narrow", narrow), "float32")
    shutil.copytree(tiny_qwen3, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors.*cannot be read"):
        load(tmp_path / "broken", "float32")


def test_a_directory_without_a_tokenizer_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    """transformers makes an empty one up, with which every text has the same vector."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_qwen3, folder, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    with pytest.raises(UserError, match="no tokenizer in it"):
        Encoder(folder, end_token="<|endoftext|>", dtype="float32")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_a_model_of_another_family_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 64, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    BertModel(BertConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel is no decoder of the Qwen3 and Llama families"):
        load_trunk(tmp_path, "float32")
