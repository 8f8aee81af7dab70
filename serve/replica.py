"""The deployment of a model: batches of token ids to vectors (embedding model) or scores (reranker)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray import serve

from qwen3emb.core.storage import Storage
from qwen3emb.model.encoder import Encoder, normalised_prefix
from qwen3emb.model.packing import pack, pooled
from qwen3emb.model.reranker import Reranker, answer_states
from serve.batching import Failure, Job, forward_passes

__all__ = ["EmbeddingHead", "Replica", "RerankingHead"]


class EmbeddingHead:
    """An embedding model that computes the vectors of a batch of jobs."""

    def __init__(self, model_dir: str, threads: int) -> None:
        """Load an embedding model that this project exported.

        Args:
            model_dir: its directory or URI.
            threads: CPU threads.
        """
        folder = Storage(model_dir).local()
        self._encoder = Encoder(folder, threads=threads)

    def __call__(self, jobs: Sequence[Job]) -> list[np.ndarray | Failure]:
        """For each job (leaves, dimensions) float32 unit vectors, or a `Failure` where they are not finite."""
        rows: list[list[np.ndarray]] = [[np.empty(0)] * len(job.leaves) for job in jobs]
        for places, trees in forward_passes(jobs):
            states = pooled(self._encoder.trunk, pack(trees).to(self._encoder.device))
            for (i, j), state in zip(places, states, strict=True):
                rows[i][j] = normalised_prefix(state[None], jobs[i].dimensions)[0].cpu().numpy()
        return [_finite(np.stack(row), "vector") for row in rows]


class RerankingHead:
    """A reranker that computes the scores of a batch of jobs."""

    def __init__(self, model_dir: str, threads: int) -> None:
        """Load a reranker.

        Args:
            model_dir: its directory or URI.
            threads: CPU threads.
        """
        folder = Storage(model_dir).local()
        self._reranker = Reranker(folder, threads=threads)

    def __call__(self, jobs: Sequence[Job]) -> list[np.ndarray | Failure]:
        """For each job (leaves,) float32 probabilities of "yes", or a `Failure` where they are not finite."""
        scores = [np.empty(len(job.leaves), dtype=np.float32) for job in jobs]
        for places, trees in forward_passes(jobs):
            states = answer_states(self._reranker.model, pack(trees).to(self._reranker.device))
            probabilities = torch.sigmoid(states.float() @ self._reranker.direction).cpu().numpy()
            for (i, j), score in zip(places, probabilities, strict=True):
                scores[i][j] = score
        return [_finite(score, "score") for score in scores]


class Replica:
    """One replica of a model: it collects jobs into batches, which its head computes."""

    def __init__(
        self,
        head: type[EmbeddingHead | RerankingHead],
        model_dir: str,
        threads: int,
        max_batch_size: int,
        batch_wait_s: float,
    ) -> None:
        """Load the model.

        Args:
            head: class of the model, embedding or reranking.
            model_dir: its directory or URI.
            threads: CPU threads.
            max_batch_size: jobs computed together.
            batch_wait_s: how long a job waits for others.
        """
        self._head = head(model_dir, threads)
        batched: Any = self._together
        batched.set_max_batch_size(max_batch_size)
        batched.set_batch_wait_timeout_s(batch_wait_s)

    async def __call__(self, job: Job) -> np.ndarray | Failure:
        """The vectors or scores of a job, computed in a batch with other jobs."""
        result: np.ndarray | Failure = await self._together(job)
        return result

    @serve.batch
    async def _together(self, jobs: list[Job]) -> list[np.ndarray | Failure]:
        # In a thread, so that requests are taken in while the model computes.
        return await asyncio.to_thread(self._compute, jobs)

    def _compute(self, jobs: list[Job]) -> list[np.ndarray | Failure]:
        with torch.inference_mode():
            return self._head(jobs)


def _finite(numbers: np.ndarray, kind: str) -> np.ndarray | Failure:
    return numbers if np.isfinite(numbers).all() else Failure(f"the model gave a {kind} that is not finite")
