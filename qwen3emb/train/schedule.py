"""Learning rates and sample order as pure functions, so that resuming needs no state for either."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from qwen3emb.config_train import OptimizerConfig

__all__ = ["batch_rows", "learning_rate"]


def learning_rate(step: int, total: int, cfg: OptimizerConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total`: linear warm-up, then the schedule's decay."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.lr
    first = cfg.warmup_steps if cfg.schedule != "wsd" else max(cfg.warmup_steps, round(total * (1 - cfg.decay_share)))
    done = max(0, step - first) / max(1, total - first)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return cfg.lr * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * shape)


def batch_rows(step: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Row numbers of global batch `step`: epochs of shuffled rows, one after the other.

    A pure function of (seed, step), whatever the world size.
    """
    first = step * batch_size
    return [int(_shuffled(seed, n // rows, rows)[n % rows]) for n in range(first, first + batch_size)]


@lru_cache(maxsize=8)
def _shuffled(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)
