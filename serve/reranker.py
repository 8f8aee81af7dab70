"""The reranking deployment: batches of finished token ids to scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray import serve

from qwen3emb.core.storage import Storage
from qwen3emb.model.loading import stored_dtype
from qwen3emb.model.packing import pack
from qwen3emb.model.reranker import Reranker, answer_states
from serve.batching import Failure, Job, forward_passes

__all__ = ["RerankerReplica"]


class RerankerReplica:
    """One replica."""

    def __init__(self, model_dir: str, threads: int, max_batch_size: int, batch_wait_s: float) -> None:
        """Load the model; arguments as of `Embedder`, `model_dir` holds a reranker."""
        folder = Storage(model_dir).local()
        self._reranker = Reranker(folder, dtype=stored_dtype(folder), threads=threads)
        batched: Any = self._together
        batched.set_max_batch_size(max_batch_size)
        batched.set_batch_wait_timeout_s(batch_wait_s)

    async def __call__(self, job: Job) -> np.ndarray | Failure:
        """(leaves,) float32 scores of one job."""
        result: np.ndarray | Failure = await self._together(job)
        return result

    @serve.batch
    async def _together(self, jobs: list[Job]) -> list[np.ndarray | Failure]:
        # In a thread, so that requests are taken in while the model computes.
        return await asyncio.to_thread(self._compute, jobs)

    def _compute(self, jobs: Sequence[Job]) -> list[np.ndarray | Failure]:
        scores = [np.empty(len(job.leaves), dtype=np.float32) for job in jobs]
        with torch.inference_mode():
            for places, trees in forward_passes(jobs):
                states = answer_states(self._reranker.model, pack(trees).to(self._reranker.device))
                found = torch.sigmoid(states.float() @ self._reranker.direction).cpu().numpy()
                for (i, j), score in zip(places, found, strict=True):
                    scores[i][j] = score
        return [s if np.isfinite(s).all() else Failure("the model gave a score that is not finite") for s in scores]
