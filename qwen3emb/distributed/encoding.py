"""Encoding and reranking many texts on Ray actors: what filter, mine, evaluate and index score with.

A pool holds loaded models for several calls. Work is handed out in small pieces to whichever actor is free,
and a lost actor is replaced and its piece computed again, so results are complete and in the input's order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
from ray.util import ActorPool

from qwen3emb.model.encoder import Encoder
from qwen3emb.model.reranker import Reranker
from qwen3emb.storage import Storage

__all__ = [
    "EncodeWorker",
    "Encoders",
    "Progress",
    "RerankWorker",
    "Rerankers",
    "actor_options",
    "encode_texts",
    "stored_dtype",
    "threads_per_worker",
]

Progress = Callable[[int, int], None]
"""Called with (texts done, texts in all)."""

CHUNK = 64


def threads_per_worker(workers: int) -> int:
    """CPU threads of one of `workers` processes that share this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def actor_options(threads: int, gpus: float) -> dict[str, Any]:
    """Ray's options of an encoding actor.

    Half a logical CPU each, so that slots stay free for the tasks that feed them.
    """
    return {
        "num_cpus": 0.5,
        "num_gpus": gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }


def stored_dtype(model_dir: Path) -> str:
    """The dtype a model directory's weights are stored in, `bfloat16` where its config does not say."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


class EncodeWorker:
    """An embedding model in one process, loaded at first use.

    Not in the constructor: Ray hides what a constructor raised, and a missing model is the user's to mend.
    """

    def __init__(self, model_dir: str, end_token: str | None, dtype: str | None, threads: int) -> None:
        """Remember what to load; `dtype` None takes the one the weights are stored in."""
        self._arguments = (model_dir, end_token, dtype, threads)
        self._encoder: Encoder | None = None

    def use(self, model_dir: str, end_token: str | None, dtype: str | None) -> None:
        """Another model instead, loaded at first use."""
        self._arguments, self._encoder = (model_dir, end_token, dtype, self._arguments[3]), None

    def encoder(self) -> Encoder:
        """The loaded model.

        Raises:
            UserError: it cannot be loaded.
        """
        if self._encoder is None:
            uri, end_token, dtype, threads = self._arguments
            folder = Storage(uri).local()
            self._encoder = Encoder(folder, end_token=end_token, dtype=dtype or stored_dtype(folder), threads=threads)
        return self._encoder

    def dimensions(self) -> int:
        """Length of the model's vectors."""
        return self.encoder().dimensions

    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def encode(self, texts: Sequence[str], instruction: str | None, max_tokens: int) -> np.ndarray:
        """(len(texts), dimensions) normalised float32; see `Encoder.encode`."""
        return self.encoder().encode(texts, max_tokens=max_tokens, instruction=instruction)

    def encode_chunk(
        self, rows: list[int], texts: list[str], instruction: str | None, max_tokens: int
    ) -> tuple[list[int], np.ndarray]:
        """The vectors together with the rows they belong to."""
        return rows, self.encode(texts, instruction, max_tokens)


class RerankWorker:
    """A reranker in one process, loaded at first use (see `EncodeWorker`)."""

    def __init__(self, model_dir: str, dtype: str | None, threads: int) -> None:
        """Remember what to load; `dtype` None takes the one the weights are stored in."""
        self._arguments = (model_dir, dtype, threads)
        self._reranker: Reranker | None = None

    def reranker(self) -> Reranker:
        """The loaded model.

        Raises:
            UserError: it cannot be loaded.
        """
        if self._reranker is None:
            uri, dtype, threads = self._arguments
            folder = Storage(uri).local()
            self._reranker = Reranker(folder, dtype=dtype or stored_dtype(folder), threads=threads)
        return self._reranker

    def context(self) -> int:
        """The model's longest input, tokens."""
        return self.reranker().context

    def score_query(
        self, row: int, query: str, documents: list[str], options: dict[str, Any]
    ) -> tuple[int, np.ndarray]:
        """The query's row and its documents' scores."""
        return row, self.reranker().score(query, documents, **options)


class Encoders:
    """Loaded copies of one embedding model on Ray actors, which end with the `with` block."""

    def __init__(
        self,
        model_dir: str,
        *,
        end_token: str | None = None,
        dtype: str | None = None,
        workers: int = 1,
        gpus_per_worker: float = 0,
    ) -> None:
        """Start the actors and load the model in each.

        Args:
            model_dir: directory or URI of the model.
            end_token: needed for directories that are not ours.
            dtype: of the weights; default as stored.
            workers: actors. On CPU each gets cores / workers threads.
            gpus_per_worker: GPUs of each.

        Raises:
            UserError: the model cannot be loaded.
        """
        threads = threads_per_worker(workers)
        start = ray.remote(EncodeWorker).options(
            **actor_options(threads, gpus_per_worker), max_restarts=-1, max_task_retries=3
        )
        uri = Storage(model_dir).uri
        self._actors: list[Any] = [start.remote(uri, end_token, dtype, threads) for _ in range(workers)]
        self.dimensions = int(_first_or_stop(self._actors, "dimensions"))

    def use(self, model_dir: str, end_token: str | None = None, dtype: str | None = None) -> None:
        """Load another model in the same actors, which saves starting new ones.

        Raises:
            UserError: the model cannot be loaded; the actors are ended.
        """
        uri = Storage(model_dir).uri
        ray.get([actor.use.remote(uri, end_token, dtype) for actor in self._actors])
        self.dimensions = int(_first_or_stop(self._actors, "dimensions"))

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int,
        instruction: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(len(texts), dimensions) normalised float32 in the order of `texts`; see `Encoder.encode`.

        Raises:
            UserError: `max_tokens` exceeds the model's context.
        """
        out = np.empty((len(texts), self.dimensions), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
        tasks = [(rows, [texts[i] for i in rows], instruction, max_tokens) for rows in chunks]
        done = 0
        for rows, vectors in _spread(self._actors, "encode_chunk", tasks):
            out[rows] = vectors
            done += len(rows)
            if progress:
                progress(done, len(texts))
        return out

    def close(self) -> None:
        """End the actors."""
        _stop(self._actors)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the actors."""
        self.close()


class Rerankers:
    """Loaded copies of one reranker on Ray actors, which end with the `with` block."""

    def __init__(
        self, model_dir: str, *, dtype: str | None = None, workers: int = 1, gpus_per_worker: float = 0
    ) -> None:
        """Start the actors and load the model in each; arguments and errors as of `Encoders`."""
        threads = threads_per_worker(workers)
        start = ray.remote(RerankWorker).options(
            **actor_options(threads, gpus_per_worker), max_restarts=-1, max_task_retries=3
        )
        uri = Storage(model_dir).uri
        self._actors = [start.remote(uri, dtype, threads) for _ in range(workers)]
        self.context = int(_first_or_stop(self._actors, "context"))

    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str]],
        *,
        max_tokens: int,
        instruction: str | None = None,
        max_query_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """For each query the float32 scores of its own documents, in their order; see `Reranker.score`.

        Raises:
            UserError: `max_tokens` exceeds the model's context or leaves no room for a document.
        """
        options = {"max_tokens": max_tokens, "instruction": instruction, "max_query_tokens": max_query_tokens}
        pairs = list(zip(queries, documents, strict=True))
        heaviest = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i][1])))
        tasks = [(i, pairs[i][0], list(pairs[i][1]), options) for i in heaviest]
        out: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(pairs)
        for done, (row, scores) in enumerate(_spread(self._actors, "score_query", tasks), start=1):
            out[row] = scores
            if progress:
                progress(done, len(pairs))
        return out

    def close(self) -> None:
        """End the actors."""
        _stop(self._actors)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the actors."""
        self.close()


def encode_texts(
    texts: Sequence[str],
    *,
    model_dir: str,
    end_token: str | None,
    dtype: str | None,
    instruction: str | None,
    max_tokens: int,
    workers: int,
    gpus_per_worker: float = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """(len(texts), dimensions) normalised float32 in the order of `texts`, from a pool of this call's own.

    Arguments and errors as of `Encoders` and `Encoders.encode`.
    """
    with Encoders(
        model_dir, end_token=end_token, dtype=dtype, workers=workers, gpus_per_worker=gpus_per_worker
    ) as pool:
        return pool.encode(texts, max_tokens=max_tokens, instruction=instruction, progress=progress)


def _spread(actors: list[Any], method: str, tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Results of `method(*task)` as they come, each task on the first actor that is free."""
    pool = ActorPool(actors)
    yield from pool.map_unordered(lambda actor, task: getattr(actor, method).remote(*task), list(tasks))


def _first_or_stop(actors: list[Any], method: str) -> Any:
    """What `method` gives on the first actor, after all have answered; ends them where one cannot."""
    try:
        return ray.get([getattr(actor, method).remote() for actor in actors])[0]
    except BaseException:
        _stop(actors)
        raise


def _stop(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
