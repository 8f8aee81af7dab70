"""Rows of all ranks as one tensor, with gradients for this rank's own rows.

Every rank computes the loss of the whole global batch; its gradient reaches its own rows only. The sum over ranks is
then the gradient of one process holding the whole batch, exactly, for any world size and uneven row counts. DeepSpeed
averages over ranks, so the caller multiplies its loss by the world size.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "rank_and_world"]


def rank_and_world() -> tuple[int, int]:
    """(rank, world size); (0, 1) where torch.distributed is not running."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather_rows(local: Tensor) -> Tensor:
    """(rows of all ranks, ...) in rank order, from (own rows, ...); own rows keep their gradient."""
    rank, world = rank_and_world()
    if world == 1:
        return local
    # all_gather wants equal shapes: ranks tell their row counts, pad to the largest, and cut again.
    counts = [torch.zeros(1, dtype=torch.long, device=local.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(local)], device=local.device))
    sizes = [int(c) for c in counts]
    padded = local.detach().new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local.detach()
    pieces = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(pieces, padded.contiguous())
    cut = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
    # What came over the wire has no graph; in its place the own rows, which have one.
    cut[rank] = local
    return torch.cat(cut)
