"""The random state of a training step as a pure function of (seed, step, rank), so that resuming needs no state."""

from __future__ import annotations

import numpy as np
import torch

from qwen3emb.objective.ranks import rank_and_world

__all__ = ["seed_step"]

_STREAM = 2  # other numbers than the mixture's draws, which are of (seed, 1, step)


def seed_step(seed: int, step: int) -> None:
    """Set torch's random state, on the CPU and on every CUDA device, for step `step` (0-based) on this rank.

    Dropout then drops the same after a resume as in a run that was never interrupted, with as many ranks.
    """
    [number] = np.random.SeedSequence([seed, _STREAM, step, rank_and_world()[0]]).generate_state(1, np.uint64)
    torch.manual_seed(int(number) >> 1)
