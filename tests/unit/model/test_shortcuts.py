"""The last layer's left-out rows and our RMS norm change nothing: against the library's own model, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from qwen3emb.model.loading import load_causal, load_trunk
from qwen3emb.model.packing import pack, pooled
from qwen3emb.model.reranker import answer_logits

PREFIX, LEAVES = [5, 9, 2], [[7, 8], [3], [11, 4, 6, 12], [3]]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
def test_states_and_gradients_are_those_of_the_plain_model(tiny_qwen3: Path, training: bool) -> None:
    ours = load_trunk(tiny_qwen3, "float32").train(training)
    plain = AutoModel.from_pretrained(tiny_qwen3, dtype=torch.float32, attn_implementation="eager").train(training)
    weight = torch.randn(len(LEAVES), ours.config.hidden_size, generator=torch.Generator().manual_seed(0))
    states = pooled(ours, pack([(PREFIX, LEAVES)]))
    (states * weight).sum().backward()
    alone = [plain(input_ids=torch.tensor([PREFIX + leaf])).last_hidden_state[0, -1] for leaf in LEAVES]
    (torch.stack(alone) * weight).sum().backward()
    torch.testing.assert_close(states, torch.stack(alone), atol=2e-5, rtol=1e-4)
    wanted, found = gradients(plain), gradients(ours)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-4, rtol=1e-3, msg=name)


def test_a_causal_lm_answers_as_the_plain_one(tiny_qwen3: Path) -> None:
    ours = load_causal(tiny_qwen3, "float32")
    plain = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = answer_logits(ours, pack([(PREFIX, LEAVES)]))
        alone = [plain(input_ids=torch.tensor([PREFIX + leaf])).logits[0, -1] for leaf in LEAVES]
    torch.testing.assert_close(logits, torch.stack(alone), atol=2e-5, rtol=1e-4)


def test_names_of_weights_stay_and_a_forward_without_a_packed_batch_is_whole(tiny_qwen3: Path) -> None:
    ours = load_trunk(tiny_qwen3, "float32")
    plain = AutoModel.from_pretrained(tiny_qwen3, dtype=torch.float32, attn_implementation="eager")
    assert ours.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        pooled(ours, pack([([], [[1, 2, 3]])]))  # must leave nothing behind
        plain.set_attn_implementation("sdpa")
        ours.set_attn_implementation("sdpa")
        ids = torch.tensor([[4, 5, 6, 7]])
        torch.testing.assert_close(ours(ids).last_hidden_state, plain(ids).last_hidden_state, atol=2e-5, rtol=1e-4)


def test_the_norm_in_bf16_rounds_as_the_library_does(tiny_qwen3: Path) -> None:
    ours = load_trunk(tiny_qwen3, "bfloat16").norm
    states = torch.randn(3, 50, ours.weight.shape[0], generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2.0)
    wanted = type(ours).forward(ours, states)
    assert (ours(states) == wanted).float().mean() > 0.999  # a square root's last bit may turn a rounding
    torch.testing.assert_close(ours(states), wanted, atol=0.02, rtol=0.01)
