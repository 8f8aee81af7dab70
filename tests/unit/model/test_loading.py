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
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from qwen3emb.core.errors import UserError
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.loading import compute_dtype, load_causal, load_tokenizer, load_trunk, replace_trunk, stored_dtype
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


def drawn(folder: Path, source: Path, kind: str, **config: object) -> Path:
    """A tiny random model of another architecture, with the tokenizer of `source`."""
    shutil.copytree(source, folder)
    sizes = json.loads((source / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    same = {name: sizes[name] for name in (*kept, "num_key_value_heads", "max_position_embeddings")}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **same, **ids, **config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "starcoder2"])
def test_a_window_is_exact_for_texts_within_it_and_refused_beyond(tiny_qwen3: Path, tmp_path: Path, kind: str) -> None:
    windowed = {"use_sliding_window": True, "max_window_layers": 0} if kind == "qwen3" else {}
    model = drawn(tmp_path / "model", tiny_qwen3, kind, sliding_window=8, **windowed)
    encoder = Encoder(model, end_token="<|endoftext|>", dtype="float32")
    text, long = "open it", "open the file and read it line by line until its end"
    ids = torch.tensor([encoder.template.encode([text], 64)[1][0]])
    assert ids.shape[1] <= 8
    reference = AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.inference_mode():
        state = reference(input_ids=ids).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(encoder.encode([text], max_tokens=64)[0], state / np.linalg.norm(state), atol=1e-5)
    with pytest.raises(UserError, match="see the last 8 tokens only"):
        encoder.encode([text, long], max_tokens=64)
    assert encoder.encode([text, long], max_tokens=8).shape == (2, 64)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gemma2", {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}),
        ("gemma3_text", {"use_bidirectional_attention": True, "query_pre_attn_scalar": 16}),
        ("phi3", {}),
        ("stablelm", {}),
    ],
)
def test_what_the_packed_attention_leaves_out_is_refused(
    tiny_qwen3: Path, tmp_path: Path, kind: str, config: dict[str, object]
) -> None:
    model = drawn(tmp_path / "model", tiny_qwen3, kind, **config)
    with pytest.raises(UserError, match=r"capped|looks ahead|no decoder of|cannot be read here|cannot be loaded"):
        Encoder(model, end_token="<|endoftext|>", dtype="float32").encode(["a text"], max_tokens=64)


def test_integer_weights_and_quantised_models_are_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    small = changed(tiny_qwen3, tmp_path / "int8", lambda w: w | {name: w[name].to(torch.int8)})
    with pytest.raises(UserError, match=r"up_proj\.weight is stored as I8"):
        load_trunk(small, "float32")
    how = {"quant_method": "gptq", "bits": 4}
    quantised = changed(tiny_qwen3, tmp_path / "gptq", lambda w: w, quantization_config=how)
    with pytest.raises(UserError, match="it is quantised"):
        load_trunk(quantised, "float32")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    fewer = changed(
        tiny_qwen3,
        tmp_path / "fewer",
        lambda w: w | {"model.embed_tokens.weight": w["model.embed_tokens.weight"][:300]},
        vocab_size=300,
    )
    for open_model in (lambda: Encoder(fewer, end_token="<|endoftext|>"), lambda: Reranker(fewer)):
        with pytest.raises(UserError, match="its embeddings have 300 rows"):
            open_model()


@pytest.mark.parametrize(
    "config",
    [{"dtype": "auto"}, {"num_attention_heads": 0}, {"num_attention_heads": "four"}, {"rope_parameters": "yarn"}],
)
def test_a_damaged_config_is_the_users_to_mend(tiny_qwen3: Path, tmp_path: Path, config: dict[str, object]) -> None:
    damaged = changed(tiny_qwen3, tmp_path / "damaged", lambda w: w, **config)
    with pytest.raises(UserError, match="damaged"):
        load_trunk(damaged, "float32")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_config_that_is_no_mapping_is_the_users_to_mend(tiny_qwen3: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(tiny_qwen3, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_bytes(content)
    for open_model in (load_trunk, load_causal):
        with pytest.raises(UserError, match=r"config\.json cannot be read"):
            open_model(tmp_path / "damaged", "float32")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        stored_dtype(tmp_path / "damaged")


@pytest.mark.parametrize("tied", [True, False])
def test_a_trunk_of_another_model_leaves_the_head(tiny_qwen3: Path, tmp_path: Path, tied: bool) -> None:
    def twice(weights: Weights) -> Weights:
        head = {} if tied else {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
        return {name: 2 * tensor for name, tensor in weights.items() if not name.startswith("lm_head")} | head

    base = changed(tiny_qwen3, tmp_path / "base", lambda w: twice(w) if not tied else w, tie_word_embeddings=tied)
    other = changed(tiny_qwen3, tmp_path / "other", twice, tie_word_embeddings=tied)
    model = load_causal(base, "float32")
    before = model.get_output_embeddings().weight.detach().clone()
    replace_trunk(model, other, "float32")
    trunk = load_trunk(other, "float32").state_dict()
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in model.model.state_dict().items())
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embeddings) == tied and torch.equal(head, before) == (not tied)


def test_a_trunk_of_another_architecture_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_qwen3, num_hidden_layers=1, layer_types=["full_attention"])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is not of the reranker base's architecture; set reranker.start to base"):
        replace_trunk(load_causal(tiny_qwen3, "float32"), tmp_path, "float32")


@pytest.mark.parametrize(
    ("stored", "fast", "device", "wanted"),
    [
        ("bfloat16", True, "cpu", "bfloat16"),
        ("bfloat16", False, "cpu", "float32"),
        ("float16", True, "cpu", "float32"),
        ("bfloat16", False, "cuda", "bfloat16"),
        ("float16", False, "cuda", "float16"),
        ("float32", True, "cpu", "float32"),
    ],
)
def test_16_bits_are_computed_in_float32_where_the_cpu_is_slow_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, fast: bool, device: str, wanted: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": stored}))
    monkeypatch.setattr("qwen3emb.model.loading.fast_bfloat16", lambda: fast)
    assert compute_dtype(tmp_path, torch.device(device)) == wanted
