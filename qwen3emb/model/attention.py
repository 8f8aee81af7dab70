"""Attention within a packed batch, on CPU and CUDA, for the attention interface of the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qwen3emb.core.errors import UserError
from qwen3emb.model.attention_cuda import cuda_attention
from qwen3emb.model.packing import PackedBatch, Segment

__all__ = ["ATTENTION_NAME", "packed_attention", "register_attention"]

ATTENTION_NAME = "qwen3emb_packed"

_DENSE_LENGTH = 640
"""Up to so many keys a segment's attention in training is a dense matrix: it takes heads x length numbers per token."""


@dataclass(frozen=True)
class _Bucket:
    """Segments of similar length with equally long prefixes, padded to one size.

    Attributes:
        count, rows, columns: segments, query tokens and key tokens of each.
        mask: (rows, columns) boolean or None where plain causal attention does.
    """

    count: int
    rows: int
    columns: int
    mask: Tensor | None


@dataclass(frozen=True)
class _Layout:
    """All buckets as gather indices, one bucket behind the other.

    Attributes:
        buckets: their sizes.
        queries: (sum of count x rows,) packed index of each query token; a segment is padded with its own last token.
        keys: (sum of count x columns,) packed index of each key token.
        places: (T,) where each packed token stands in `queries`.
    """

    buckets: list[_Bucket]
    queries: Tensor
    keys: Tensor
    places: Tensor


def _bucket(segments: Sequence[Segment]) -> tuple[_Bucket, Tensor, Tensor, Tensor]:
    """(sizes, (n, L) query tokens, (n, P + L) key tokens, (n, L) which query tokens are not padding)."""
    longest, shared = max(s.end - s.start for s in segments), segments[0].prefix_length
    # (n, 1) where each segment begins in the packed row, and how many tokens it has.
    starts = torch.tensor([s.start for s in segments])[:, None]
    lengths = torch.tensor([s.end - s.start for s in segments])[:, None]
    step = torch.arange(longest)[None]
    # (n, L) packed index of each query token. A segment that is shorter than L repeats its own last token: what is
    # computed for the repetition is thrown away, and as a key it stands behind every real token, where the causal
    # mask hides it.
    rows = starts + torch.minimum(step, lengths - 1)
    # (n, P): all tokens of the prefix that the segment goes on from; P = 0 where there is none.
    prefixes = torch.tensor([s.prefix_start for s in segments])[:, None] + torch.arange(shared)[None]
    # Columns are prefix, then segment: row i sees columns 0 to P + i, hence the diagonal P. Without a prefix that is
    # plain causal attention, which the kernel knows by itself and does faster than with a mask.
    mask = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared) if shared else None
    columns = torch.cat([prefixes, rows], dim=1)
    return _Bucket(len(segments), longest, shared + longest, mask), rows, columns, step < lengths


def _layout(batch: PackedBatch) -> _Layout:
    """Group segments so that at most a fifth of a bucket's rows is padding; made once per batch."""
    if "layout" in batch.cache:
        known: _Layout = batch.cache["layout"]
        return known
    # Sorted by length, so that a bucket is a run of neighbours: its first segment is its shortest.
    ordered = sorted(batch.segments, key=lambda s: (s.prefix_length, s.end - s.start))
    groups: list[list[Segment]] = []
    for s in ordered:
        shortest = groups[-1][0] if groups else None
        alike = shortest is not None and shortest.prefix_length == s.prefix_length
        if alike and shortest is not None and (shortest.end - shortest.start) >= 0.8 * (s.end - s.start) - 2:
            groups[-1].append(s)
        else:
            groups.append([s])
    buckets, rows, columns, useful = zip(*map(_bucket, groups), strict=True)
    queries, keys = (torch.cat([t.flatten() for t in parts]) for parts in (rows, columns))
    # From bucket rows back to packed tokens: of all rows those that are no padding, then the inverse permutation.
    # Every packed token stands in exactly one bucket row, so `places` has no gap.
    kept = torch.cat([t.flatten() for t in useful]).nonzero().squeeze(1)
    places = torch.empty_like(kept)
    places[queries[kept]] = kept
    layout = _Layout(list(buckets), queries, keys, places)
    batch.cache["layout"] = layout
    return layout


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
        return cuda_attention(query, key, value, batch, scale)
    layout = _layout(batch)
    # One gather for all buckets: its backward fills and adds up one gradient, not one for each bucket.
    queries = torch.split(_gather(query, layout.queries), [b.count * b.rows for b in layout.buckets])
    # Keys of a shared prefix are gathered once per leaf: n x (P + L) columns instead of P + n x L. The prefix itself
    # went through the layers once; only this lookup repeats it.
    sizes = [b.count * b.columns for b in layout.buckets]
    keys, values = (torch.split(_gather(t, layout.keys), sizes) for t in (key, value))
    pieces = []
    for b, q, k, v in zip(layout.buckets, queries, keys, values, strict=True):
        # (n x L, heads, d) -> (n, L, heads, d), and keys and values (n, P + L, kv heads, d).
        q = q.view(b.count, b.rows, *q.shape[1:])
        k, v = (t.view(b.count, b.columns, *t.shape[1:]) for t in (k, v))
        dense = training and b.columns <= _DENSE_LENGTH
        attended = _dense(q, k, v, batch, scale) if dense else _fused(q, k, v, b.mask, scale)
        pieces.append(attended.flatten(0, 1))
    out: Tensor = _Take.apply(torch.cat(pieces), layout.places)  # type: ignore[no-untyped-call]
    return out


def _gather(states: Tensor, index: Tensor) -> Tensor:
    """(T, heads, dim) -> (len(index), heads, dim)."""
    rows: Tensor = torch.nn.functional.embedding(index, states.flatten(1))
    return rows.view(-1, *states.shape[1:])


class _Take(torch.autograd.Function):
    """Rows of a tensor at distinct places: the backward copies, where plain indexing would have to add up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        """(R, ...) and (T,) -> (T, ...)"""
        ctx.save_for_backward(places)
        ctx.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of `rows`: zero for rows that were not taken."""
        [places] = ctx.saved_tensors
        out = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return out.index_copy_(0, places, gradient.contiguous()), None


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(n, L, heads, dim) from query (n, L, heads, dim) and key, value (n, P + L, kv heads, dim): torch's kernel."""
    # Grouped-query attention: `group` query heads read one key head. Key heads are repeated to as many.
    group = query.shape[2] // key.shape[2]
    k, v = (t.repeat_interleave(group, dim=2) if group > 1 else t for t in (key, value))
    q, k, v = (t.transpose(1, 2) for t in (query, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return out.transpose(1, 2)


def _dense(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, scale: float) -> Tensor:
    """As `_fused`, by matrix products; the query heads of one key head are rows of one product."""
    count, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    # (n, L, kv, group, d) -> (n, kv, group, L, d) -> (n x kv, group x L, d): the query heads that share a key head
    # become more rows of one matrix, so keys are not copied `group` times as `_fused` does.
    q = query.view(count, length, kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    q = q.reshape(count * kv_heads, group * length, dim)
    k, v = (t.transpose(1, 2).reshape(count * kv_heads, -1, dim) for t in (key, value))
    # (n x kv, group x L, P + L) = bias + scale x q k^T in one call; minus infinity in the bias is the mask.
    scores = torch.baddbmm(_bias(batch, length, k.shape[1], group, q), q, k.transpose(1, 2), alpha=scale)
    # softmax over the keys, times values, and the reshapes above undone.
    out = torch.bmm(scores.softmax(dim=-1), v).view(count, kv_heads, group, length, dim)
    return out.permute(0, 3, 1, 2, 4).reshape(count, length, heads, dim)


def _bias(batch: PackedBatch, rows: int, columns: int, group: int, like: Tensor) -> Tensor:
    """(group x rows, columns) zero where attention is allowed, else minus infinity; made once, not in every layer."""
    name = f"bias {rows} {columns} {group} {like.dtype}"
    if name not in batch.cache:
        # `columns - rows` is P, see `_bucket`; the same block for each of the `group` heads that were stacked as
        # rows.
        causal = torch.ones(rows, columns, dtype=torch.bool, device=like.device).tril(columns - rows)
        empty = torch.zeros(rows, columns, dtype=like.dtype, device=like.device)
        batch.cache[name] = empty.masked_fill(~causal, float("-inf")).repeat(group, 1)
    bias: Tensor = batch.cache[name]
    return bias


def _interface(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, T, dim) in, ((1, T, heads, dim), None) out.

    Raises:
        UserError: the model asks for another attention than causal over the whole text, which would be left out.
    """
    _require_plain(module, kwargs)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    # A packed batch is one row: (1, heads, T, d) -> (T, heads, d), so that tokens can be gathered.
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
    return packed_attention(query, key, value, kwargs["packed"], scale, module.training)[None], None


def _require_plain(module: Any, options: dict[str, Any]) -> None:
    """Refuse kinds of attention that are not implemented here; ignored, they would give slightly wrong vectors."""
    kind = type(module).__name__
    batch = options.get("packed")
    if batch is None:
        raise UserError(f"{kind}: this architecture does not hand the packed layout on, so it cannot be read here")
    if options.get("softcap") or options.get("s_aux") is not None or not getattr(module, "is_causal", True):
        raise UserError(f"{kind}: attention that is capped, has sinks or looks ahead is not supported here")
    window = options.get("sliding_window")
    if window is None:
        return
    if "longest" not in batch.cache:
        batch.cache["longest"] = max(s.prefix_length + s.end - s.start for s in batch.segments)
    if batch.cache["longest"] > window:
        longest = batch.cache["longest"]
        raise UserError(
            f"{kind}: layers of this model see the last {window} tokens only, which is not supported here, and a text "
            f"has {longest}; cut texts to {window} tokens (max_tokens), or take another model"
        )


def register_attention() -> None:
    """Make `attn_implementation="qwen3emb_packed"` known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _interface)
    AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
