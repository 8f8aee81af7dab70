"""Communication between ranks: work divided by length, and the rows of all ranks gathered into one tensor.

Every rank computes the loss of the whole global batch; its gradient reaches the rows of that rank only. The sum over
ranks is then the gradient of one process holding the whole batch, exactly, for any world size and uneven row counts.
DeepSpeed averages over ranks, so the caller multiplies its loss by the world size.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["balance", "gather_rows", "rank_and_world"]


def rank_and_world() -> tuple[int, int]:
    """(rank, world size); (0, 1) where torch.distributed is not running."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather_rows(local: Tensor) -> Tensor:
    """(rows of all ranks, ...) in rank order, from (rows of this rank, ...); only this rank's rows keep their graph."""
    rank, world = rank_and_world()
    if world == 1:
        return local
    # all_gather wants equal shapes: ranks exchange their row counts, pad to the largest, and cut again.
    counts = [torch.zeros(1, dtype=torch.long, device=local.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(local)], device=local.device))
    sizes = [int(c) for c in counts]
    padded = local.detach().new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local.detach()
    pieces = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(pieces, padded.contiguous())
    cut = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
    # Gathered rows have no graph; those of this rank are replaced by `local`, which has one.
    cut[rank] = local
    return torch.cat(cut)


def balance(lengths: Sequence[int], world: int) -> list[list[int]]:
    """For each rank the numbers of its items, ascending; the ranks' sums of lengths are nearly equal."""
    ranks: list[list[int]] = [[] for _ in range(world)]
    # Longest item to the rank with the least so far (greedy scheduling, at most 4/3 of the best). Ties go by rank
    # number, so every rank computes the same shares. The + 1 spreads empty texts too.
    loads = [(0, rank) for rank in range(world)]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, rank = heapq.heappop(loads)
        ranks[rank].append(item)
        heapq.heappush(loads, (load + lengths[item] + 1, rank))
    return [sorted(items) for items in ranks]
