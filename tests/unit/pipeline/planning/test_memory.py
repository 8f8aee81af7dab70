"""Memory by formula against the tensors of real models, optimizers and graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwen3emb.config.training import LoraConfig, OptimizerConfig
from qwen3emb.model.lora import add_adapters
from qwen3emb.pipeline.planning.memory import (
    Memory,
    Trained,
    activation_bytes,
    encoding_memory,
    kv_bytes_per_token,
    training_memory,
)
from qwen3emb.pipeline.planning.shapes import ModelShape, shape_of


def model_of(kind: str = "qwen3", tied: bool = True, head: bool = False, layers: int = 2) -> tuple[Any, ModelShape]:
    import transformers

    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": tied,
    }
    name = {"qwen3": "Qwen3", "llama": "Llama"}[kind]
    config = getattr(transformers, f"{name}Config")(**sizes, attn_implementation="sdpa")
    shape = shape_of(config.to_dict())
    assert shape is not None
    return getattr(transformers, f"{name}ForCausalLM" if head else f"{name}Model")(config).to(torch.bfloat16), shape


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_parameters_and_tensors_of_a_model(kind: str, tied: bool, head: bool) -> None:
    model, shape = model_of(kind, tied, head)
    assert shape.parameters(head) == count(model)
    assert shape.tensors + (head and not tied) == len(list(model.parameters()))


def test_parameters_of_adapters() -> None:
    model, shape = model_of()
    settings = LoraConfig(rank=5)
    add_adapters(model, settings)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.adapter_parameters(settings.rank, settings.modules) == trainable


def test_a_bert_encoder_has_about_what_its_shape_says() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=2000, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4
    )
    shape = shape_of(config.to_dict())
    assert shape is not None
    assert shape.parameters() == pytest.approx(count(BertModel(config)), rel=0.15)  # biases, positions, pooler


def adamw_bytes(weights: list[torch.Tensor], masters: bool) -> int:
    """Bytes of AdamW's state after a step, and of float32 copies where there are some."""
    trained = [torch.nn.Parameter(w.detach().float()) for w in weights] if masters else weights
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    return sum(t.nbytes for t in moments) + (sum(t.nbytes for t in trained) if masters else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_and_optimizer_are_those_of_torch(dtype: torch.dtype) -> None:
    model, shape = model_of()
    model = model.to(dtype)
    weights, width = list(model.parameters()), 2 if dtype == torch.bfloat16 else 4
    parameters = shape.parameters(head=False)
    memory = training_memory(Trained(parameters, parameters), OptimizerConfig(zero_stage=0), 1, width)
    assert memory.weights == sum(w.nbytes for w in weights)
    assert memory.optimizer == adamw_bytes(weights, masters=dtype == torch.bfloat16)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    assert memory.gradients == sum(w.grad.nbytes for w in weights)


def parts(stage: Any, workers: int = 4, **more: Any) -> Memory:
    return training_memory(Trained(8e9, 8e9), OptimizerConfig(zero_stage=stage, **more), workers, 2)


def test_zero_splits_one_thing_more_with_each_stage() -> None:
    zero, one, two, three = (parts(stage) for stage in range(4))
    assert (zero.weights, zero.gradients, zero.optimizer) == (16e9, 16e9, 96e9)
    assert (one.weights, one.gradients, one.optimizer) == (16e9, 16e9 + 8e9, 24e9)
    assert (two.weights, two.gradients, two.optimizer) == (16e9, 4e9 + 8e9, 24e9)
    assert (three.weights, three.gradients, three.optimizer) == (4e9, 4e9 + 8e9, 24e9)
    assert zero.buffers == 0 and one.buffers == 2e9 and three.buffers == 3e9


def test_offload_leaves_buckets_and_before_zero_3_the_weights() -> None:
    assert (parts(2, offload=True).weights, parts(2, offload=True).optimizer) == (16e9, 0)
    assert parts(3, offload=True).weights == 0
    assert parts(2, gradient_dtype="float32").gradients == 4 * 2e9


def saved_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of the distinct storages, parameters left out, that a forward pass keeps for its backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(input_ids=ids, use_cache=False).last_hidden_state.sum()
    sizes = [t.untyped_storage().nbytes() for t in kept.values()]
    del out
    return sum(sizes)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_activations_are_what_autograd_keeps(kind: str) -> None:
    model, shape = model_of(kind, layers=6)
    tokens = 128
    kept = saved_bytes(model.train(), torch.arange(tokens)[None] % 300)
    assert activation_bytes(shape, tokens, 2) == pytest.approx(kept, rel=0.1)


def test_activations_with_checkpointing() -> None:
    model, shape = model_of(layers=6)
    model.train().gradient_checkpointing_enable()
    tokens = 128
    kept = saved_bytes(model, torch.arange(tokens)[None] % 300)
    one_layer = activation_bytes(shape, tokens, 2) / shape.layers
    assert activation_bytes(shape, tokens, 2, again=tokens) == pytest.approx(kept + one_layer, rel=0.1)


def test_keys_and_values_of_a_token() -> None:
    model, shape = model_of(head=True)
    with torch.no_grad():
        cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes_per_token(shape) == stored / 10
    assert kv_bytes_per_token(shape, tensor_parallel=2) == stored / 20
    assert kv_bytes_per_token(shape, tensor_parallel=8) == stored / 20  # a head is not split, it is stored twice


def test_an_encoder_holds_its_weights_and_one_pass() -> None:
    model, shape = model_of()
    memory = encoding_memory(shape, 4096, 2, head=False)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.total == memory.weights + memory.activations
    assert memory.largest == "activations"
