"""Learning rates and sample order as pure functions, so that resuming needs no state for either."""

from __future__ import annotations

import math

import numpy as np

from qwen3emb.config.training import OptimizerConfig

__all__ = ["SampleOrder", "learning_rate"]


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


class SampleOrder:
    """Epochs of the shuffled rows of one dataset, one after the other: a pure function of (seed, position).

    The permutation of the epoch that was asked for last is kept, and no other: steps go forward.

    Attributes:
        shuffled: how many permutations were computed so far.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self.shuffled = 0

    def batch(self, number: int, size: int) -> list[int]:
        """Row numbers of the batch `number` (from 0) of `size` rows, whatever the world size."""
        first, end, found = number * size, (number + 1) * size, []
        while first < end:
            epoch, place = divmod(first, self._rows)
            part = self._of(epoch)[place : place + end - first]
            found.extend(part.tolist())
            first += len(part)
        return found

    def _of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._rows)
            self.shuffled += 1
        return self._order
