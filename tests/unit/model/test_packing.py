"""The packed forward against the model's own attention, one sequence at a time, in fp32."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, LlamaConfig, LlamaModel

from qwen3emb.model.attention import (
    ATTENTION_NAME,
    packed_attention,
    register_attention,
)
from qwen3emb.model.attention_cuda import boundaries, may_attend, segment_tensors
from qwen3emb.model.loading import load_trunk
from qwen3emb.model.packing import Tree, allowed, pack

TREES: list[Tree] = [
    ([5, 6, 7], [[8], [9, 10, 11, 12], [13, 14]]),
    ([], [[20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]),
    ([5, 6, 7], [[30, 31]]),
    ([40], [[41, 42, 43], [44]]),
]


def last_states(model: torch.nn.Module, trees: list[Tree]) -> torch.Tensor:
    batch = pack(trees)
    out = model(input_ids=batch.input_ids, position_ids=batch.position_ids, packed=batch, use_cache=False)
    return out.last_hidden_state[0, batch.last]


def one_by_one(model: torch.nn.Module, trees: list[Tree]) -> torch.Tensor:
    whole = [[*prefix, *leaf] for prefix, leaves in trees for leaf in leaves]
    return torch.stack([model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in whole])


def llama_pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    register_attention()
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)
    plain = LlamaModel(config)
    packed_config = LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)
    packed_config._attn_implementation = ATTENTION_NAME
    packed = LlamaModel(packed_config)
    packed.load_state_dict(plain.state_dict())
    return plain, packed


def test_packed_forward_equals_single_forwards_for_qwen3_and_llama(tiny_qwen3: Path) -> None:
    plain, packed = llama_pair()
    torch.testing.assert_close(last_states(packed, TREES), one_by_one(plain, TREES), atol=1e-5, rtol=1e-4)
    plain, packed = AutoModel.from_pretrained(tiny_qwen3), load_trunk(tiny_qwen3, "float32")
    torch.testing.assert_close(last_states(packed, TREES), one_by_one(plain, TREES), atol=1e-4, rtol=1e-4)


def test_packed_gradients_equal_single_gradients() -> None:
    plain, packed = llama_pair()
    weights = torch.randn(7, 48, generator=torch.Generator().manual_seed(1))
    (last_states(packed, TREES) * weights).sum().backward()
    (one_by_one(plain, TREES) * weights).sum().backward()
    for (name, ours), (_, theirs) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


trees_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, 63), max_size=5),
        st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=9), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(trees=trees_strategy)
def test_attention_equals_dense_attention_under_the_obvious_mask(trees: list[Tree]) -> None:
    batch = pack(trees)
    q, k, v = (torch.randn(batch.tokens, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    ours, trained = (packed_attention(q, k, v, batch, 0.3, training) for training in (False, True))
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
    dense = scores.masked_fill(~allowed(batch)[None], -torch.inf).softmax(dim=-1)
    wanted = torch.einsum("hqk,khd->qhd", dense, v)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(trained, wanted)


@given(trees=trees_strategy)
def test_the_rule_of_the_cuda_back_end_is_the_obvious_mask(trees: list[Tree]) -> None:
    batch = pack(trees)
    own, prefix = segment_tensors(batch)
    index = torch.arange(batch.tokens)
    rule = may_attend(own, prefix, index[:, None], index[None, :])
    assert torch.equal(rule, allowed(batch))


def test_the_flash_kernels_boundaries_are_the_sequences_of_the_batch() -> None:
    """Attention over what the boundaries cut out, one sequence at a time, is the CPU path's."""
    batch = pack([([], [[20, 21, 22]]), ([], [[9], [10, 11, 12, 13]])])
    found = boundaries(batch)
    assert found is not None and (found.starts.tolist(), found.longest) == ([0, 3, 4, 8], 4)
    assert found.starts.dtype == torch.int32 and boundaries(pack(TREES)) is None
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(8, heads, 16, generator=generator) for heads in (4, 2, 2))
    pieces = []
    for first, end in pairwise(found.starts.tolist()):
        q, k, v = (t[first:end].transpose(0, 1) for t in (query, key, value))
        k, v = (t.repeat_interleave(2, dim=0) for t in (k, v))
        alone = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
        pieces.append(alone.transpose(0, 1))
    torch.testing.assert_close(packed_attention(query, key, value, batch, 0.25), torch.cat(pieces))


def test_a_batch_has_no_padding_and_knows_its_last_tokens() -> None:
    batch = pack(TREES)
    assert batch.tokens == 3 + 7 + 10 + 3 + 2 + 1 + 4
    assert [int(batch.input_ids[0, i]) for i in batch.last] == [8, 12, 14, 29, 31, 43, 44]
    with pytest.raises(AssertionError, match="empty leaf"):
        pack([([1], [[]])])
