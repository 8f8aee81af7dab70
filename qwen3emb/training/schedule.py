"""The learning rate as a pure function of the step, so that resuming needs no state for it."""

from __future__ import annotations

import math

from qwen3emb.config.training import OptimizerConfig

__all__ = ["learning_rate"]


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
