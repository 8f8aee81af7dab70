"""Loss of a global batch and its gradient with respect to the vectors, in tiles shared among the ranks.

This is the middle of a gradient-cache step: vectors come in without their graph, gradients go out. Memory grows with
(tile) x (batch), never with (batch)^2; each rank computes every W-th tile, and the sums are reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from qwen3emb.config.training import LossConfig
from qwen3emb.objective.gather import rank_and_world
from qwen3emb.objective.losses import ContrastiveBatch, LossSums, contrastive_rows, cosent_loss, prefixes

__all__ = ["contrastive_gradients", "cosent_gradients"]

Gradients = tuple[Tensor, Tensor, Tensor]
"""With respect to queries (N, D), positives (N, D) and negatives (M, D)."""


@torch.enable_grad()  # a caller without graphs of its own may want the loss alone
def contrastive_gradients(
    batch: ContrastiveBatch, cfg: LossConfig, *, explicit_only: bool = False, tile: int = 256
) -> tuple[float, Gradients, dict[str, float]]:
    """Value, gradients and metrics of `losses.matryoshka_loss`, the same on every rank.

    Args:
        batch: the global batch, the same on every rank; vectors need not be normalised.
        cfg: the loss.
        explicit_only: as of `losses.contrastive_loss`.
        tile: rows of the score matrix at a time.
    """
    rank, world = rank_and_world()
    count, width = batch.queries.shape
    # Every rank has the whole batch; rank r computes the score rows of tiles r, r + W, ... and no others. Tiles are
    # made small enough that each rank gets one.
    tile = max(1, min(tile, -(-count // world)))
    starts = range(0, count, tile)[rank::world]
    # (N, D), (N, D), (M, D). Gradients add up over the MRL prefixes and the tiles, in float32 whatever the model has.
    raw = [batch.queries, batch.positives, batch.negatives]
    gradients = [torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in raw]
    loss = 0.0
    metrics: dict[str, float] = {}
    for dimensions, weight in prefixes(cfg, width):
        # Two graphs with a cut between them: leaf -> unit (normalising, whole batch) and cut -> loss (per tile). The
        # graph of a tile, (tile) x (3N + 2M) scores, is freed as soon as its gradient lies in cut.grad; normalising,
        # which all tiles share, is walked back once at the end.
        leaves = [t[:, :dimensions].detach().float().requires_grad_() for t in raw]
        units = [normalize(leaf, dim=-1) for leaf in leaves]
        cut = [unit.detach().requires_grad_() for unit in units]
        here = replace(batch, queries=cut[0], positives=cut[1], negatives=cut[2])
        sums = LossSums()
        for start in starts:
            part, found = contrastive_rows(here, slice(start, start + tile), cfg, explicit_only)
            # Divided by N of the global batch here: tiles and ranks are then summed, never averaged.
            torch.autograd.backward(part * (weight / count))
            sums = sums + found
        for total, leaf, unit, used in zip(gradients, leaves, units, cut, strict=True):
            if used.grad is not None:
                # Through the normalisation: only what is orthogonal to a vector is left of its gradient.
                torch.autograd.backward(unit, used.grad)
                assert leaf.grad is not None
                # A prefix loss moves the first `dimensions` columns only.
                total[:, :dimensions] += leaf.grad
        sums = LossSums(*_summed([torch.tensor(astuple(sums), dtype=torch.float64)])[0].tolist())
        loss += weight * sums.loss / count
        metrics = metrics or sums.metrics()
    queries, positives, negatives = _summed(gradients)
    return loss, (queries, positives, negatives), metrics


@torch.enable_grad()
def cosent_gradients(
    batch: ContrastiveBatch, grades: Tensor, cfg: LossConfig
) -> tuple[float, Gradients, dict[str, float]]:
    """Value, gradients and metrics of CoSENT over graded pairs, on the full vector and each MRL prefix.

    Args:
        batch: `queries` and `positives` are the two sentences of each pair; negatives are not used.
        grades: (N,) human scores.
        cfg: temperature and prefixes.
    """
    leaves = [t.detach().float().requires_grad_() for t in (batch.queries, batch.positives)]
    total = torch.zeros((), device=grades.device)
    positive = 0.0
    for dimensions, weight in prefixes(cfg, batch.queries.shape[1]):
        first, second = (normalize(leaf[:, :dimensions], dim=-1) for leaf in leaves)
        total = total + weight * cosent_loss(first, second, grades, cfg.temperature)
        positive = positive or float((first * second).detach().sum(dim=1).mean())
    torch.autograd.backward(total)
    queries, positives = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
    figures = {"masked": 0.0, "positive": positive, "hardest": 0.0}
    return float(total.detach()), (queries, positives, torch.zeros_like(batch.negatives)), figures


def _summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over the ranks, in one exchange."""
    if rank_and_world()[1] == 1:
        return list(tensors)
    device = tensors[0].device
    # One exchange instead of one per tensor: what counts with small tensors is the number of round trips.
    flat = torch.cat([t.flatten() for t in tensors])
    # NCCL reduces CUDA tensors only; the float64 sums of the metrics are made on the CPU.
    flat = flat.cuda() if dist.get_backend() == "nccl" and device.type == "cpu" else flat
    dist.all_reduce(flat)
    parts = torch.split(flat.to(device), [t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
