"""Padding-free forward: sequences concatenated, each attending to itself and to its shared prefix.

A packed batch is a forest. A tree is a prefix (may be empty) and its leaves; a leaf's positions go on where the
prefix ends, and it attends to the prefix and, causally, to itself. Plain sequences are trees with no prefix. The
forward is exact: every leaf gets the hidden states it would get alone (tested against the padded model).

`attention` computes it, through the attention interface of the transformers library; no model code is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["PackedBatch", "Segment", "Tree", "allowed", "budgeted", "pack", "pooled"]

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
    # N leaves of T tokens in all become ONE row (1, T): no token is padding. What keeps them apart is the mask that
    # `segments` describes; what makes a leaf's states those of prefix + leaf alone is its positions.
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    last: list[int] = []
    for prefix, leaves in trees:
        start, shared = len(ids), len(prefix)
        if shared:
            # A prefix is computed once, whatever the number of its leaves: its tokens see only each other, causally, so
            # their states do not depend on the leaves behind it.
            segments.append(Segment(start, start + shared))
            ids.extend(prefix)
            positions.extend(range(shared))
        for leaf in leaves:
            assert len(leaf) > 0, "an empty leaf has no last token"
            segments.append(Segment(len(ids), len(ids) + len(leaf), start, start + shared))
            ids.extend(leaf)
            # Every leaf goes on at position `shared`, not behind the leaf before it: rotary positions must be those of
            # the sequence prefix + leaf.
            positions.extend(range(shared, shared + len(leaf)))
            # Pooling and answers read the LAST token; its place in the row is all that is left of where leaves end.
            last.append(len(ids) - 1)
    return PackedBatch(
        torch.tensor([ids]), torch.tensor([positions]), tuple(segments), torch.tensor(last, dtype=torch.long)
    )


def allowed(batch: PackedBatch) -> Tensor:
    """(T, T) boolean: may token row attend to token column. The slow, obvious form of the mask."""
    mask = torch.zeros(batch.tokens, batch.tokens, dtype=torch.bool)
    for s in batch.segments:
        # The whole prefix stands before the leaf, so all of it is visible; inside the leaf it is causal.
        mask[s.start : s.end, s.prefix_start : s.prefix_end] = True
        mask[s.start : s.end, s.start : s.end] = torch.ones(s.end - s.start, s.end - s.start).tril().bool()
    return mask


TOKEN_BUDGET = 4096


def pooled(trunk: Any, batch: PackedBatch) -> Tensor:
    """(number of leaves, hidden) last-layer states, after the final norm, at each leaf's last token, in fp32."""
    states = trunk(
        input_ids=batch.input_ids, position_ids=batch.position_ids, packed=batch, use_cache=False
    ).last_hidden_state
    # (1, T, hidden) -> (leaves, hidden). The attention is causal, so the last token is the only one that has read the
    # whole text: it is the vector (last-token pooling). fp32 from here on: lengths and dot products in bfloat16 keep
    # two or three digits.
    out: Tensor = states[0, batch.last].float()
    return out


def budgeted(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices grouped so that each group's lengths sum to at most `budget`, longest first.

    A single sequence longer than the budget is a group of its own.
    """
    # Longest first: inputs of like length share a group, and the largest forward comes first, so that memory which is
    # enough for it is enough for the rest.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    used = 0
    for i in order:
        if group and used + lengths[i] > budget:
            yield group
            group, used = [], 0
        group.append(i)
        used += lengths[i]
    if group:
        yield group
