"""Adapters between this project's models and `mteb`: an encoder, and retrieval followed by reranking."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3emb.evaluation.vector_cache import VectorCache
from qwen3emb.metrics.retrieval import own_documents
from qwen3emb.text.documents import document_text
from qwen3emb.text.retrieval_set import RetrievalSet

__all__ = ["HarnessEncoder", "Instructions", "TwoStageSearch", "leave_out_own", "model_meta"]

_LOCAL = "local"  # the revision of tasks that `harness_tasks` makes of a folder

Embed = Callable[[list[str], str | None], np.ndarray]
"""(n, dimensions) float32 unit vectors of n texts, as queries with an instruction or as documents with None."""
PairScorer = Callable[[list[str], list[list[str]], str | None], list[np.ndarray]]
"""(queries, documents of each query, instruction) -> for each query the scores of its documents, in their order."""


def model_meta(name: str, revision: str, dimensions: int) -> Any:
    """mteb's metadata of a model; `name` has the form `organisation/model`."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    about = {"name": name, "revision": revision, "embed_dim": dimensions, "use_instructions": True}
    return ModelMeta.create_empty(about | {"similarity_fn_name": ScoringFunction.COSINE, "modalities": ["text"]})


@dataclass(frozen=True)
class Instructions:
    """The instruction of a task: from the user's file, else the task's own prompt, else its type's.

    Attributes:
        by_task: task name -> instruction of queries, or {"query": ..., "document": ...}.
        by_type: task name -> mteb's default prompt for tasks of its type.
    """

    by_task: Mapping[str, str | Mapping[str, str]]
    by_type: Mapping[str, str]

    def of(self, metadata: Any, side: str | None) -> str | None:
        """The instruction for one side of a task; None where its texts take no instruction.

        Args:
            metadata: mteb's metadata of the task.
            side: "query", "document", or None in tasks with one kind of text, as STS.
        """
        instruction = self.by_task.get(metadata.name, metadata.prompt)
        if isinstance(instruction, Mapping):
            instruction = instruction.get(side or "query")
            if side == "document":
                return instruction
        if side == "document":
            return None
        return instruction or self.by_type.get(metadata.name)


class HarnessEncoder:
    """An embedding model for mteb: texts to unit vectors, through a cache."""

    def __init__(self, embed: Embed, cache: VectorCache | None, instructions: Instructions, meta: Any) -> None:
        """Wrap a model for mteb.

        Args:
            embed: computes vectors.
            cache: vectors computed before; None = none are kept.
            instructions: of the tasks.
            meta: from `model_meta`.
        """
        self._embed, self._cache, self._instructions = embed, cache, instructions
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """(texts, dimensions) float32 unit vectors of the `text` of all batches of `inputs`; mteb calls this."""
        texts = [text for batch in inputs for text in batch["text"]]
        side = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        instruction = self._instructions.of(task_metadata, side)
        if self._cache is None or not texts:
            return self._embed(texts, instruction)
        return self._cache.encode(texts, repr(instruction), lambda new: self._embed(new, instruction))

    def similarity(self, one: Any, other: Any) -> Any:
        """(n, m) cosines of unit vectors."""
        import torch

        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        """(n,) cosines of unit vectors, row by row."""
        import torch

        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(dim=-1)


class TwoStageSearch:
    """Retrieval with the embedding model, then the first documents in the order of a reranker (RECIPE section 5)."""

    def __init__(
        self,
        encoder: HarnessEncoder,
        judge: PairScorer,
        instructions: Instructions,
        top: int,
        meta: Any,
        own_left_out: Collection[str] = (),
    ) -> None:
        """Combine both models.

        Args:
            encoder: retrieves the candidates.
            judge: the reranker, which scores the first `top` candidates of each query.
            instructions: of the tasks.
            top: documents per query that the reranker scores.
            meta: from `model_meta`, for both models together.
            own_left_out: names of tasks that leave out the document with the query's own id; it must not take a place
                among the `top`.
        """
        from mteb.models import SearchEncoderWrapper

        self._search = SearchEncoderWrapper(encoder)
        self._judge, self._instructions, self._top = judge, instructions, top
        self._own_left_out = frozenset(own_left_out)
        self._texts: dict[str, str] = {}
        self.mteb_model_meta = meta

    def index(self, corpus: Any, *, task_metadata: Any, **more: Any) -> None:
        """Embed the documents, and keep their texts for the reranker."""
        self._texts = {row["id"]: document_text(row.get("title") or "", row["text"]) for row in corpus}
        self._search.index(corpus, task_metadata=task_metadata, **more)

    def search(self, queries: Any, *, task_metadata: Any, top_k: int, **more: Any) -> dict[str, dict[str, float]]:
        """query id -> {document id: score}; documents that the reranker scored rank above all others."""
        results = self._search.search(queries, task_metadata=task_metadata, top_k=top_k, **more)
        if task_metadata.name in self._own_left_out:
            results = {query: {d: score for d, score in hits.items() if d != query} for query, hits in results.items()}
        texts = dict(zip(queries["id"], queries["text"], strict=True))
        best = {query: sorted(hits, key=lambda d: (-hits[d], d))[: self._top] for query, hits in results.items()}
        query_ids = [query for query, documents in best.items() if documents]
        documents = [[self._texts[document] for document in best[query]] for query in query_ids]
        scores = self._judge(
            [texts[query] for query in query_ids], documents, self._instructions.of(task_metadata, "query")
        )
        for query, judged in zip(query_ids, scores, strict=True):
            # Cosines are at most 1 and probabilities at least 0, so that probability + 2 is above every cosine.
            results[query] |= {d: 2.0 + float(score) for d, score in zip(best[query], judged, strict=True)}
        return results


def leave_out_own(task: Any, say: Callable[[str], None]) -> None:
    """For a task made of a local folder: let mteb leave out the query itself where queries are documents too.

    mteb goes by the id alone, so this is done only if no query's judgments call the document with its id relevant.
    """
    if not hasattr(task, "k_values") or task.metadata.dataset.get("revision") != _LOCAL:
        return
    splits = [split for by_split in task.dataset.values() for split in by_split.values()]
    sets = [_as_set(split) for split in splits]
    own_count = sum(len(places) for data in sets for places in own_documents(data))
    judged = any(grades.get(query, 0) > 0 for data in sets for query, grades in data.qrels.items())
    if own_count and not judged:
        task.ignore_identical_ids = True
        name = task.metadata.name
        say(f"evaluate: {name}: {own_count} queries are documents too; a query's own document does not count")


def _as_set(split: Mapping[str, Any]) -> RetrievalSet:
    corpus = {row["id"]: (row.get("title") or "", row["text"]) for row in split["corpus"]}
    return RetrievalSet({row["id"]: row["text"] for row in split["queries"]}, corpus, split["relevant_docs"])
