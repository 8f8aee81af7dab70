"""The embedding deployment: batches of finished token ids to vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray import serve

from qwen3emb.core.storage import Storage
from qwen3emb.model.encoder import Encoder, normalised_prefix, pooled
from qwen3emb.model.loading import stored_dtype
from qwen3emb.model.packing import pack
from serve.batching import Failure, Job, forward_passes

__all__ = ["EmbedderReplica"]


class EmbedderReplica:
    """One replica."""

    def __init__(self, model_dir: str, threads: int, max_batch_size: int, batch_wait_s: float) -> None:
        """Load the model.

        Args:
            model_dir: directory or URI of an embedding model of ours.
            threads: CPU threads.
            max_batch_size: jobs computed together.
            batch_wait_s: how long a job waits for others.
        """
        folder = Storage(model_dir).local()
        self._encoder = Encoder(folder, dtype=stored_dtype(folder), threads=threads)
        batched: Any = self._together
        batched.set_max_batch_size(max_batch_size)
        batched.set_batch_wait_timeout_s(batch_wait_s)

    async def __call__(self, job: Job) -> np.ndarray | Failure:
        """(leaves, dimensions) normalised float32 of one job."""
        result: np.ndarray | Failure = await self._together(job)
        return result

    @serve.batch
    async def _together(self, jobs: list[Job]) -> list[np.ndarray | Failure]:
        # In a thread, so that requests are taken in while the model computes.
        return await asyncio.to_thread(self._compute, jobs)

    def _compute(self, jobs: Sequence[Job]) -> list[np.ndarray | Failure]:
        rows: list[list[np.ndarray]] = [[np.empty(0)] * len(job.leaves) for job in jobs]
        with torch.inference_mode():
            for places, trees in forward_passes(jobs):
                states = pooled(self._encoder.trunk, pack(trees).to(self._encoder.device))
                for (i, j), state in zip(places, states, strict=True):
                    rows[i][j] = normalised_prefix(state[None], jobs[i].dimensions)[0].cpu().numpy()
        vectors = [np.stack(row) for row in rows]
        return [v if np.isfinite(v).all() else Failure("the model gave a vector that is not finite") for v in vectors]
