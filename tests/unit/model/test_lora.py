"""Adapters: only they are trained, and the exported weights compute what the model with adapters computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen3emb.config.training import LoraConfig
from qwen3emb.core.errors import UserError
from qwen3emb.model.loading import load_trunk
from qwen3emb.model.lora import add_adapters, merged_weights
from qwen3emb.model.packing import pack, pooled


def test_merged_weights_compute_what_the_adapters_compute(tiny_qwen3: Path) -> None:
    cfg = LoraConfig(rank=3, alpha=12)
    model = add_adapters(load_trunk(tiny_qwen3, "float32"), cfg)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        batch = pack([([5, 6], [[7, 8, 9], [10]])])
        expected = pooled(model, batch)
        plain = load_trunk(tiny_qwen3, "float32")
        before = pooled(plain, batch)
        plain.load_state_dict(merged_weights(model.state_dict(), cfg))
        torch.testing.assert_close(pooled(plain, batch), expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(before, expected, atol=1e-3)


def test_layers_that_are_not_there_are_the_users_to_mend(tiny_qwen3: Path) -> None:
    with pytest.raises(UserError, match=r"lora.modules \['c_attn'\]: this model has no such layers \(Qwen3Model"):
        add_adapters(load_trunk(tiny_qwen3, "float32"), LoraConfig(modules=["c_attn"]))
