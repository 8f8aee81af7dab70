"""A document of 32,768 tokens in training with activation checkpointing: states and gradients of the plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from qwen3emb.model.loading import load_trunk
from qwen3emb.model.packing import pack, pooled

pytestmark = pytest.mark.integration

TOKENS = 32_768


def test_a_document_of_32k_tokens_is_trained_on_with_activation_checkpointing(tiny_qwen3: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_qwen3)
    config.max_position_embeddings = TOKENS
    config.num_attention_heads, config.num_key_value_heads = 1, 1  # attention is nearly all of the time
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    ours = load_trunk(tmp_path, "float32").train()
    ours.gradient_checkpointing_enable()
    plain = AutoModel.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa").train()
    plain.gradient_checkpointing_enable()
    ids = torch.randint(0, config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(1))
    weight = torch.randn(config.hidden_size, generator=torch.Generator().manual_seed(2))

    [state] = pooled(ours, pack([([], [ids.tolist()])]))
    (state * weight).sum().backward()
    wanted = plain(input_ids=ids[None], use_cache=False).last_hidden_state[0, -1]
    (wanted * weight).sum().backward()

    torch.testing.assert_close(state, wanted, atol=1e-4, rtol=1e-3)
    for (name, found), (_, known) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert found.grad is not None and known.grad is not None, name
        torch.testing.assert_close(found.grad, known.grad, atol=1e-3, rtol=1e-2, msg=name)
