"""Actors that hold one model each, and the CPUs, GPUs and threads that each of a pool takes of its node."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from qwen3emb.config.resources import encoder_bundle
from qwen3emb.core.cores import threads_of, usable_cores
from qwen3emb.core.storage import Storage
from qwen3emb.model.fetch import is_endpoint, resolve_model
from qwen3emb.model.foreign import AnyEncoder, open_encoder
from qwen3emb.model.reranker import Reranker

__all__ = [
    "EncodeWorker",
    "ModelPlace",
    "RerankWorker",
    "actor_options",
    "threads_here",
]


def threads_here(workers: int, gpus: float = 0) -> int:
    """CPU threads of this process, one of a pool of `workers` that Ray spreads over its nodes (`actor_options`).

    The node's usable cores are divided by the largest number of the pool's workers that a node can get.

    Args:
        workers: number of workers in the pool.
        gpus: GPUs of each worker; nodes with fewer get no worker.
    """
    required = encoder_bundle(gpus).resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    capable = sum(all(node.get(name, 0) >= amount for name, amount in required.items()) for node in nodes)
    return threads_of(usable_cores(), -(-workers // max(1, capable)))


def actor_options(gpus: float) -> dict[str, Any]:
    """Ray's options of an encoding actor, spread over the nodes as Ray Data spreads its own.

    It sets the number of its threads itself (`threads_here`).
    """
    return encoder_bundle(gpus).options() | {"scheduling_strategy": "SPREAD"}


class ModelPlace(NamedTuple):
    """Which embedding model: directory, URI or address, and how it is opened (see `model.foreign`)."""

    uri: str
    end_token: str | None = None
    dtype: str | None = None  # None: that of `compute_dtype`


class EncodeWorker:
    """Any embedding model (`model.foreign`) in one process, loaded at first use.

    It is kept until a call names another one. Every call names the model, so that a worker that Ray started anew never
    answers with another one. Nothing is loaded in the constructor: Ray hides its errors, and the user has to see that a
    model is missing.
    """

    def __init__(self, workers: int, gpus: float = 0) -> None:
        """Nothing is loaded yet; arguments as of `threads_here`."""
        self._pool = workers, gpus
        self._model: ModelPlace | None = None
        self._encoder: AnyEncoder | None = None

    def encoder(self, model: ModelPlace) -> AnyEncoder:
        """The loaded model.

        Raises:
            UserError: it cannot be loaded.
        """
        if self._encoder is None or self._model != model:
            self._encoder = None  # one at a time in memory
            place = model.uri if is_endpoint(model.uri) else resolve_model(model.uri)
            torch.set_num_threads(threads_here(*self._pool))  # Ray has set OMP_NUM_THREADS by `num_cpus`, to 1
            self._encoder = open_encoder(place, end_token=model.end_token, dtype=model.dtype)
            self._model = model
        return self._encoder

    def dimensions(self, model: ModelPlace) -> int:
        """Length of the model's vectors."""
        return self.encoder(model).dimensions

    def pid(self) -> int:
        """Id of this process."""
        return os.getpid()

    def encode(
        self, model: ModelPlace, texts: Sequence[str], instruction: str | Sequence[str | None] | None, max_tokens: int
    ) -> np.ndarray:
        """(len(texts), dimensions) normalised float32; see `Encoder.encode`. `instruction` may be one for each text."""
        encoder = self.encoder(model)
        if instruction is None or isinstance(instruction, str):
            return encoder.encode(texts, max_tokens=max_tokens, instruction=instruction)
        out = np.empty((len(texts), encoder.dimensions), dtype=np.float32)
        for distinct in dict.fromkeys(instruction):
            rows = [row for row, text_instruction in enumerate(instruction) if text_instruction == distinct]
            out[rows] = encoder.encode([texts[row] for row in rows], max_tokens=max_tokens, instruction=distinct)
        return out

    def notes(self, model: ModelPlace) -> dict[str, int]:
        """Counts of replaced and cut texts (`EndpointEncoder.notes`); empty for a model that runs in this process."""
        return dict(getattr(self.encoder(model), "notes", {}))

    def encode_chunk(
        self,
        model: ModelPlace,
        rows: list[int],
        texts: list[str],
        instruction: str | Sequence[str | None] | None,
        max_tokens: int,
    ) -> tuple[list[int], np.ndarray]:
        """The vectors together with the rows they belong to."""
        return rows, self.encode(model, texts, instruction, max_tokens)

    def write_piece(
        self,
        model: ModelPlace,
        uri: str,
        name: str,
        texts: list[str],
        instruction: str | Sequence[str | None] | None,
        max_tokens: int,
    ) -> int:
        """Embed texts and write the vectors into file `name` of a folder, whole or not at all; returns how many."""
        buffer = io.BytesIO()
        np.save(buffer, self.encode(model, texts, instruction, max_tokens))
        Storage(uri).write_bytes(name, buffer.getvalue())
        return len(texts)


class RerankWorker:
    """A reranker in one process, loaded at first use for the reason given at `EncodeWorker`."""

    def __init__(self, model_dir: str, dtype: str | None, workers: int, gpus: float = 0) -> None:
        """Remember what to load; `dtype` None is that of `compute_dtype`, others are as of `threads_here`."""
        self._arguments, self._pool = (model_dir, dtype), (workers, gpus)
        self._reranker: Reranker | None = None

    def reranker(self) -> Reranker:
        """The loaded model.

        Raises:
            UserError: it cannot be loaded.
        """
        if self._reranker is None:
            uri, dtype = self._arguments
            folder = resolve_model(uri)
            torch.set_num_threads(threads_here(*self._pool))
            self._reranker = Reranker(folder, dtype=dtype)
        return self._reranker

    def context(self) -> int:
        """The model's longest input, tokens."""
        return self.reranker().context

    def score_query(
        self, row: int, query: str, documents: list[str], options: dict[str, Any]
    ) -> tuple[int, np.ndarray]:
        """The query's row and its documents' scores."""
        return row, self.reranker().score(query, documents, **options)
