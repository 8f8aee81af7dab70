"""Encoding and reranking many texts on Ray actors, for the stages filter, mine, evaluate and index.

A pool holds loaded models for several calls. Work is handed out in small pieces to whichever actor is free,
and a lost actor is replaced and its piece computed again, so results are complete and in the input's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qwen3emb.encoding.dispatch import Progress, WorkerPool
from qwen3emb.encoding.workers import EncodeWorker, ModelPlace, RerankWorker, actor_options
from qwen3emb.model.endpoint import notes_lines
from qwen3emb.model.fetch import is_endpoint, model_place

__all__ = ["Encoders", "Rerankers", "instruction_of_rows"]

Instruction = str | Sequence[str | None] | None
"""One instruction for all texts, or one for each of them; None for documents."""

CHUNK = 64
_RETRIES = 3  # a text that ends its worker each time must not hold the stage for ever


class Encoders(WorkerPool):
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
            model_dir: directory, name, URI or address of the model (see `model.foreign`).
            end_token: token the embedding is read at; needed for directories that qwen3emb did not export.
            dtype: of the weights; default that of `model.loading.compute_dtype`.
            workers: actors. On CPU those of a node share its cores (`workers.threads_here`).
            gpus_per_worker: GPUs of each.

        Raises:
            UserError: the model cannot be loaded.
        """
        arguments, options = (workers, gpus_per_worker), actor_options(gpus_per_worker)
        super().__init__(EncodeWorker, arguments, workers, "embedding", retries=_RETRIES, **options)
        self.use(model_dir, end_token, dtype)

    def use(self, model_dir: str, end_token: str | None = None, dtype: str | None = None) -> None:
        """Load another model in the same actors, which saves starting new ones.

        Raises:
            UserError: the model cannot be loaded; the actors are ended.
        """
        place = model_place(model_dir)
        self._model = ModelPlace(place, end_token, dtype)
        self.label = f"embedding with {place}"
        self.dimensions = int(self.ask_all("dimensions", self._model)[0])

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int,
        instruction: Instruction = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(len(texts), dimensions) normalised float32 in the order of `texts`; see `Encoder.encode`.

        Raises:
            UserError: `max_tokens` exceeds the model's context.
        """
        out = np.empty((len(texts), self.dimensions), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
        tasks = [
            (self._model, rows, [texts[i] for i in rows], instruction_of_rows(instruction, rows), max_tokens)
            for rows in chunks
        ]
        done = 0
        for rows, vectors in self.run("encode_chunk", tasks):
            out[rows] = vectors
            done += len(rows)
            if progress:
                progress(done, len(texts))
        return out

    def write(self, pieces: Sequence[tuple[str, str, Sequence[str], Instruction, int]]) -> Iterator[int]:
        """Embed each piece (folder URI, file name, texts, instruction, `max_tokens`) and write its vectors as `.npy`.

        Returns:
            The number of texts of each piece, as the pieces are finished, in any order.
        """
        yield from self.run("write_piece", [(self._model, *piece) for piece in pieces])

    def notes(self) -> list[str]:
        """Lines about texts that a server accepted only changed or cut; none for a model that runs on the workers."""
        if not is_endpoint(self._model.uri):
            return []
        return notes_lines(self.ask_all("notes", self._model))


class Rerankers(WorkerPool):
    """Loaded copies of one reranker on Ray actors, which end with the `with` block."""

    def __init__(
        self, model_dir: str, *, dtype: str | None = None, workers: int = 1, gpus_per_worker: float = 0
    ) -> None:
        """Start the actors and load the model in each; arguments and errors as of `Encoders`."""
        uri = model_place(model_dir)
        arguments, options = (uri, dtype, workers, gpus_per_worker), actor_options(gpus_per_worker)
        super().__init__(RerankWorker, arguments, workers, f"reranking with {uri}", retries=_RETRIES, **options)
        self.context = int(self.ask_all("context")[0])

    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str]],
        *,
        max_tokens: int,
        instruction: Instruction = None,
        max_query_tokens: int | None = None,
        logits: bool = False,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """For each query the float32 scores of its documents, in their order; see `Reranker.score`.

        Raises:
            UserError: `max_tokens` exceeds the model's context or leaves no room for a document.
        """
        options: dict[str, Any] = {"max_tokens": max_tokens, "max_query_tokens": max_query_tokens, "logits": logits}
        instructions = (
            [instruction] * len(queries) if instruction is None or isinstance(instruction, str) else instruction
        )
        pairs = list(zip(queries, documents, strict=True))
        heaviest = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i][1])))
        tasks = [(i, pairs[i][0], list(pairs[i][1]), options | {"instruction": instructions[i]}) for i in heaviest]
        out: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(pairs)
        for done, (row, scores) in enumerate(self.run("score_query", tasks), start=1):
            out[row] = scores
            if progress:
                progress(done, len(pairs))
        return out


def instruction_of_rows(instruction: Instruction, rows: Sequence[int]) -> Instruction:
    """The instruction of some of the texts, given by their rows.

    A single instruction where they share it, so that the model is called once.
    """
    if instruction is None or isinstance(instruction, str):
        return instruction
    chosen = [instruction[row] for row in rows]
    return chosen[0] if len(set(chosen)) == 1 else chosen
