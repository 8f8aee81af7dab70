"""The CUDA back end of packed attention: torch's flash kernel for plain sequences, flex attention for shared prefixes.

Neither kernel runs on a CPU. Their inputs, the boundaries of the sequences and the rule of the mask, are made by the
functions below, which are tested against the CPU path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3emb.model.packing import PackedBatch

__all__ = ["Boundaries", "boundaries", "cuda_attention", "may_attend", "segment_tensors"]


@dataclass(frozen=True)
class Boundaries:
    """Sequences as the flash kernel takes them.

    Attributes:
        starts: (sequences + 1,) int32, where each begins, and the number of tokens.
        longest: tokens of the longest.
    """

    starts: Tensor
    longest: int


def boundaries(batch: PackedBatch) -> Boundaries | None:
    """The sequences of a batch; None where some share a prefix, which the flash kernel does not support."""
    if any(s.prefix_length for s in batch.segments):
        return None
    if "boundaries" not in batch.cache:
        # Segments lie one behind the other without gaps, so the end of one is where the next begins.
        ends = [0, *(s.end for s in batch.segments)]
        longest = max(s.end - s.start for s in batch.segments)
        batch.cache["boundaries"] = Boundaries(torch.tensor(ends, dtype=torch.int32), longest)
    known: Boundaries = batch.cache["boundaries"]
    return known


def cuda_attention(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, scale: float) -> Tensor:
    """As `attention.packed_attention`; the flash kernel needs half precision."""
    sequences = boundaries(batch) if query.dtype in (torch.bfloat16, torch.float16) else None
    if sequences is None:
        return _flex(query, key, value, batch, scale)
    return _varlen(query, key, value, sequences, scale)


def _varlen(query: Tensor, key: Tensor, value: Tensor, sequences: Boundaries, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = sequences.starts.to(query.device), sequences.longest
    # Packed tokens are (T, heads, d) with `starts` as the only sign of where a sequence begins: no padding, no mask.
    causal = (-1, 0)  # all keys before, none behind
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        starts,
        starts,
        longest,
        longest,
        scale=scale,
        window_size=causal,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    attended: Tensor = out if isinstance(out, Tensor) else out[0]
    return attended


def segment_tensors(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """(T,) number of each token's segment and (T,) number of its prefix segment, -1 for none."""
    segment = torch.empty(batch.tokens, dtype=torch.long)
    # -1 equals no segment number: a plain sequence has no prefix to attend to.
    prefix = torch.full((batch.tokens,), -1, dtype=torch.long)
    starts = {s.start: i for i, s in enumerate(batch.segments)}
    for i, s in enumerate(batch.segments):
        segment[s.start : s.end] = i
        if s.prefix_length:
            prefix[s.start : s.end] = starts[s.prefix_start]
    return segment, prefix


def may_attend(segment: Tensor, prefix: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The rule of `packing.allowed` as flex attention takes it: may token `row` attend to token `column`.

    Args:
        segment, prefix: of `segment_tensors`.
        row, column: token numbers, of shapes that broadcast.
    """
    # Within its own segment a token sees what stands before it, of its prefix everything.
    itself = (segment[row] == segment[column]) & (row >= column)
    return itself | (segment[column] == prefix[row])


def _flex(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, scale: float) -> Tensor:
    """Flex attention with the same rule as the CPU path, compiled once for all lengths."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    segment, prefix = (t.to(query.device) for t in segment_tensors(batch))

    def rule(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return may_attend(segment, prefix, row, column)

    if "block" not in batch.cache:
        # Which tiles of the (T, T) matrix hold anything at all is found once per batch, not once per layer.
        size = batch.tokens
        batch.cache["block"] = create_block_mask(rule, None, None, size, size, device=query.device)
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    # Uncompiled, flex attention would write the whole (heads, T, T) matrix; `dynamic` keeps one compilation for all
    # T.
    attend: Any = torch.compile(flex_attention, dynamic=True)
    out: Tensor = attend(q, k, v, block_mask=batch.cache["block"], scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)
