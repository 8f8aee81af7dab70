"""FLOPs by formula against torch's own counter, and attended pairs against the mask that the packing describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen3emb.config.training import LoraConfig
from qwen3emb.model.loading import load_trunk
from qwen3emb.model.lora import add_adapters
from qwen3emb.model.packing import allowed, pack, pooled
from qwen3emb.objective.microbatch import PlainEngine, cached_backward
from qwen3emb.pipeline.planning.flops import (
    Adapters,
    Passes,
    Tokens,
    forward_flops,
    head_flops,
    training_flops,
    tree,
)
from qwen3emb.pipeline.planning.shapes import ModelShape, shape_of

TEXTS, LENGTH = 3, 96
# The library's plain attention computes all pairs, also those that the mask hides, and the whole last layer.
DENSE = Tokens(TEXTS * LENGTH, TEXTS * LENGTH, TEXTS * LENGTH**2)


def qwen3(head: bool = False) -> tuple[Any, ModelShape]:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(
        vocab_size=500,
        hidden_size=48,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    shape = shape_of(config.to_dict())
    assert shape is not None
    return (Qwen3ForCausalLM if head else Qwen3Model)(config).float().train(), shape


def ids() -> torch.Tensor:
    return torch.randint(0, 500, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))


def counted(step: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def test_a_forward_pass() -> None:
    model, shape = qwen3()
    with torch.no_grad():
        flops = counted(lambda: model(input_ids=ids()))
    assert forward_flops(shape, DENSE) == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_forward_and_backward_with_and_without_checkpointing(checkpointed: bool) -> None:
    model, shape = qwen3()
    if checkpointed:
        model.gradient_checkpointing_enable()
    flops = counted(lambda: model(input_ids=ids()).last_hidden_state.sum().backward())
    # torch stops to compute again where it has all it needs, before a layer's last product.
    assert training_flops(shape, DENSE, Passes(checkpointed=checkpointed)) == pytest.approx(flops, rel=0.05)


def test_training_adapters_alone() -> None:
    model, shape = qwen3()
    settings = LoraConfig(rank=2)
    add_adapters(model, settings)
    flops = counted(lambda: model(input_ids=ids()).last_hidden_state.sum().backward())
    expected = training_flops(shape, DENSE, Passes(adapters=Adapters(settings.rank, settings.modules)))
    assert expected == pytest.approx(flops, rel=0.1)
    assert expected < 0.85 * training_flops(shape, DENSE, Passes())


def test_the_head_at_the_answers_alone() -> None:
    model, shape = qwen3(head=True)
    flops = counted(lambda: model(input_ids=ids(), logits_to_keep=1).logits.sum().backward())
    assert training_flops(shape, DENSE, Passes(), answers=TEXTS) == pytest.approx(flops, rel=0.02)
    assert head_flops(shape, TEXTS) > 0


def matrix_products(step: Any) -> int:
    """FLOPs outside of attention, which is a matter of how a backend pads."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("budget", [10_000, 60], ids=["kept", "gradient cache"])
def test_our_own_step_with_the_gradient_cache(tiny_qwen3: Path, budget: int) -> None:
    trunk = load_trunk(tiny_qwen3, "float32").train()
    shape = ModelShape(2, 64, 4, 2, 16, 128, trunk.config.vocab_size, True, head_norms=True)
    packs = [pack([([5, 6, 7], [[8] * 20, [9] * 30])]), pack([([], [[4] * 25, [3] * 15])])]
    engine = PlainEngine(trunk)
    flops = matrix_products(
        lambda: cached_backward(engine, packs, lambda b: pooled(engine, b), torch.ones_like, budget)
    )
    tokens = Tokens(sum(p.tokens for p in packs), 4, 0)
    expected = training_flops(shape, tokens, Passes(cached=budget < tokens.count))
    assert expected == pytest.approx(flops, rel=0.05)


@pytest.mark.parametrize(("prefix", "leaf", "leaves"), [(0, 7, 1), (0, 5, 4), (6, 3, 5), (11, 9, 1)])
def test_attended_pairs_are_those_of_the_mask(prefix: int, leaf: int, leaves: int) -> None:
    trees = [([1] * prefix, [[2] * leaf] * leaves)]
    batch, tokens = pack(trees), tree(prefix, leaf, leaves)
    assert tokens.attended == allowed(batch).sum()
    assert (tokens.count, tokens.read) == (batch.tokens, len(batch.last))
