"""Padding-free forward: sequences concatenated, each attending to itself and to its shared prefix.

A packed batch is a forest. A tree is a prefix (may be empty) and its leaves; a leaf's positions go on where the
prefix ends, and it attends to the prefix and, causally, to itself. Plain sequences are trees with no prefix. The
forward is exact: every leaf gets the hidden states it would get alone (tested against the padded model).

Decoders of the transformers library take this through its attention interface; no model code is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["ATTENTION_NAME", "PackedBatch", "Segment", "Tree", "pack", "packed_attention", "register_attention"]

ATTENTION_NAME = "qwen3emb_packed"

_DENSE_LENGTH = 640
"""Up to so many keys a segment's attention in training is a dense matrix: it takes heads x length numbers per token."""

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""(prefix ids, leaves' ids); the prefix may be empty, the leaves may not."""


@dataclass(frozen=True)
class Segment:
    """A run of packed tokens [start, end) and the run [prefix_start, prefix_end) it may also attend to."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0

    @property
    def prefix_length(self) -> int:
        """How many shared tokens stand before this run."""
        return self.prefix_end - self.prefix_start


@dataclass(frozen=True)
class PackedBatch:
    """A forest of token sequences as one row.

    Attributes:
        input_ids: (1, T).
        position_ids: (1, T), restarted for each tree, going on from the prefix for each leaf.
        segments: every prefix and leaf, in packed order.
        last: (number of leaves,) packed index of each leaf's last token, in the order given to `pack`.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]
    last: Tensor
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """How many tokens the forward computes."""
        return int(self.input_ids.shape[1])

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        moved = (t.to(device) for t in (self.input_ids, self.position_ids, self.last))
        ids, positions, last = moved
        return PackedBatch(ids, positions, self.segments, last)


def pack(trees: Sequence[Tree]) -> PackedBatch:
    """Concatenate trees into one packed batch; leaves keep their order."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    last: list[int] = []
    for prefix, leaves in trees:
        start, shared = len(ids), len(prefix)
        if shared:
            segments.append(Segment(start, start + shared))
            ids.extend(prefix)
            positions.extend(range(shared))
        for leaf in leaves:
            assert len(leaf) > 0, "an empty leaf has no last token"
            segments.append(Segment(len(ids), len(ids) + len(leaf), start, start + shared))
            ids.extend(leaf)
            positions.extend(range(shared, shared + len(leaf)))
            last.append(len(ids) - 1)
    return PackedBatch(
        torch.tensor([ids]), torch.tensor([positions]), tuple(segments), torch.tensor(last, dtype=torch.long)
    )


def allowed(batch: PackedBatch) -> Tensor:
    """(T, T) boolean: may token row attend to token column. The slow, obvious form of the mask."""
    mask = torch.zeros(batch.tokens, batch.tokens, dtype=torch.bool)
    for s in batch.segments:
        mask[s.start : s.end, s.prefix_start : s.prefix_end] = True
        mask[s.start : s.end, s.start : s.end] = torch.ones(s.end - s.start, s.end - s.start).tril().bool()
    return mask


@dataclass(frozen=True)
class _Bucket:
    """Segments of similar length with equally long prefixes, as gather indices.

    Attributes:
        rows: (n, L) packed index of each query token, padded with the segment's own last token.
        columns: (n, P + L) packed index of each key token.
        kept: flat indices into (n * L) of the tokens that are not padding.
        mask: (L, P + L) boolean or None where plain causal attention does.
    """

    rows: Tensor
    columns: Tensor
    kept: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Plan:
    """All buckets, and where each packed token stands in their concatenated outputs."""

    buckets: list[_Bucket]
    restore: Tensor


def _bucket(segments: Sequence[Segment]) -> _Bucket:
    longest, shared = max(s.end - s.start for s in segments), segments[0].prefix_length
    starts = torch.tensor([s.start for s in segments])[:, None]
    lengths = torch.tensor([s.end - s.start for s in segments])[:, None]
    step = torch.arange(longest)[None]
    rows = starts + torch.minimum(step, lengths - 1)
    prefixes = torch.tensor([s.prefix_start for s in segments])[:, None] + torch.arange(shared)[None]
    kept = (step < lengths).flatten().nonzero().squeeze(1)
    mask = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared) if shared else None
    return _Bucket(rows, torch.cat([prefixes, rows], dim=1), kept, mask)


def _plan(batch: PackedBatch) -> _Plan:
    """Group segments so that at most a fifth of a bucket's rows is padding; made once per batch."""
    if "plan" in batch.cache:
        known: _Plan = batch.cache["plan"]
        return known
    ordered = sorted(batch.segments, key=lambda s: (s.prefix_length, s.end - s.start))
    groups: list[list[Segment]] = []
    for s in ordered:
        shortest = groups[-1][0] if groups else None
        alike = shortest is not None and shortest.prefix_length == s.prefix_length
        if alike and shortest is not None and (shortest.end - shortest.start) >= 0.8 * (s.end - s.start) - 2:
            groups[-1].append(s)
        else:
            groups.append([s])
    buckets = [_bucket(group) for group in groups]
    order = torch.cat([b.rows.flatten()[b.kept] for b in buckets])
    restore = torch.empty_like(order)
    restore[order] = torch.arange(len(order))
    plan = _Plan(buckets, restore)
    batch.cache["plan"] = plan
    return plan


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, scale: float, training: bool = False
) -> Tensor:
    """Attention within a packed batch.

    Args:
        query: (T, heads, head dim); key, value: (T, kv heads, head dim), where kv heads divides heads.
        batch: the layout.
        scale: factor on the scores.
        training: on CPU, short segments are multiplied out as dense matrices, whose forward + backward takes between a
            quarter and a half of the time of torch's fused attention there. Scores are then rounded to the dtype of
            `query`, as in the eager attention of the transformers library.

    Returns:
        (T, heads, head dim)
    """
    if query.is_cuda:
        return _flex(query, key, value, batch, scale)
    plan = _plan(batch)
    pieces = []
    for b in plan.buckets:
        q = _gather(query, b.rows, query.shape[1])
        k, v = (_gather(t, b.columns, query.shape[1]) for t in (key, value))
        if training and b.columns.shape[1] <= _DENSE_LENGTH:
            out = _dense(q, k, v, _bias(batch, q, k), scale)
        else:
            out = scaled_dot_product_attention(q, k, v, attn_mask=b.mask, is_causal=b.mask is None, scale=scale)
        pieces.append(out.transpose(1, 2).flatten(0, 1)[b.kept])
    return torch.cat(pieces)[plan.restore]


def _bias(batch: PackedBatch, query: Tensor, key: Tensor) -> Tensor:
    """(L, P + L) zero where attention is allowed, else minus infinity; made once per batch, not in every layer."""
    rows, columns = query.shape[2], key.shape[2]
    name = f"bias {rows} {columns} {query.dtype}"
    if name not in batch.cache:
        causal = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        empty = torch.zeros(rows, columns, dtype=query.dtype, device=query.device)
        batch.cache[name] = empty.masked_fill(~causal, float("-inf"))
    bias: Tensor = batch.cache[name]
    return bias


def _dense(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(n, heads, L, dim) from query (n, heads, L, dim) and key, value (n, heads, P + L, dim)."""
    q, k, v = (t.flatten(0, 1) for t in (query, key, value))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), v).view(query.shape)


def _gather(states: Tensor, index: Tensor, heads: int) -> Tensor:
    """(T, kv heads, dim) -> (n, heads, L, dim) at the packed positions `index` (n, L)."""
    rows: Tensor = torch.nn.functional.embedding(index, states.flatten(1)).view(*index.shape, *states.shape[1:])
    if heads != states.shape[1]:
        rows = rows.repeat_interleave(heads // states.shape[1], dim=2)
    return rows.transpose(1, 2)


def segment_tensors(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """(T,) own segment number and (T,) number of the prefix segment it may attend to (-1 for none)."""
    own = torch.empty(batch.tokens, dtype=torch.long)
    prefix = torch.full((batch.tokens,), -1, dtype=torch.long)
    starts = {s.start: i for i, s in enumerate(batch.segments)}
    for i, s in enumerate(batch.segments):
        own[s.start : s.end] = i
        if s.prefix_length:
            prefix[s.start : s.end] = starts[s.prefix_start]
    return own, prefix


def may_attend(own: Tensor, prefix: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The rule of `allowed` for index tensors, as flex attention wants it."""
    itself = (own[row] == own[column]) & (row >= column)
    return itself | (own[column] == prefix[row])


def _flex(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, scale: float) -> Tensor:
    """CUDA back end: torch's flex attention with the same rule as the CPU path."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    own, prefix = (t.to(query.device) for t in segment_tensors(batch))

    def rule(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return may_attend(own, prefix, row, column)

    if "block" not in batch.cache:
        size = batch.tokens
        batch.cache["block"] = create_block_mask(rule, None, None, size, size, device=query.device)
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    attend: Any = torch.compile(flex_attention, dynamic=True)
    out: Tensor = attend(q, k, v, block_mask=batch.cache["block"], scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def _interface(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, T, dim) in, ((1, T, heads, dim), None) out."""
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
    return packed_attention(query, key, value, kwargs["packed"], scale, module.training)[None], None


def register_attention() -> None:
    """Make `attn_implementation="qwen3emb_packed"` known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _interface)
    AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
