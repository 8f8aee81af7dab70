"""Equation 1 and its matryoshka sum in one piece, with a graph: what tiles and ranks must add up to."""

from __future__ import annotations

from torch import Tensor

from qwen3emb.config.training import LossConfig
from qwen3emb.objective.losses import ContrastiveBatch, contrastive_rows, prefixes


def contrastive_loss(
    batch: ContrastiveBatch, cfg: LossConfig, explicit_only: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Equation 1: mean over rows of -log(e^{s(q,d+)/tau} / Z), with the five terms of Z and their masks.

    Args:
        batch: vectors already normalised (`ContrastiveBatch.prefix`).
        cfg: temperature, margin and the switches of RECIPE section 2.
        explicit_only: classification rows: Z has only the positive and the row's own hard negatives, since other
            rows of the batch may share the class.

    Returns:
        (scalar loss, `LossSums.metrics`).
    """
    count = len(batch.queries)
    loss, sums = contrastive_rows(batch, slice(0, count), cfg, explicit_only)
    return loss / count, sums.metrics()


def matryoshka_loss(
    batch: ContrastiveBatch, cfg: LossConfig, explicit_only: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """The contrastive loss on the full vector plus, weighted, on each prefix of `cfg.mrl_dims` (MRL).

    Metrics are those of the full vector.
    """
    loss, metrics = contrastive_loss(batch.prefix(None), cfg, explicit_only)
    for dimensions, weight in prefixes(cfg, batch.queries.shape[1])[1:]:
        loss = loss + weight * contrastive_loss(batch.prefix(dimensions), cfg, explicit_only)[0]
    return loss, metrics
