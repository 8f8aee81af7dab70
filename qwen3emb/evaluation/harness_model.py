"""Our encoders and rerankers as `mteb` wants its models: an encoder, and a search in two stages; own documents."""

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
"""For each query the scores of its documents."""


def model_meta(name: str, revision: str, dimensions: int) -> Any:
    """What mteb notes of a model; `name` has the form `organisation/model`."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    about = {"name": name, "revision": revision, "embed_dim": dimensions, "use_instructions": True}
    return ModelMeta.create_empty(about | {"similarity_fn_name": ScoringFunction.COSINE, "modalities": ["text"]})


@dataclass(frozen=True)
class Instructions:
    """The instruction of a task: from the user's file, else the task's own prompt, else its type's.

    Attributes:
        given: task name -> instruction of queries, or {"query": ..., "document": ...}.
        by_type: task name -> what mteb says of its type.
    """

    given: Mapping[str, str | Mapping[str, str]]
    by_type: Mapping[str, str]

    def of(self, metadata: Any, side: str | None) -> str | None:
        """The instruction of one side of a task.

        Args:
            metadata: mteb's of the task.
            side: "query", "document", or None in tasks where both sides are alike.
        """
        own = self.given.get(metadata.name, metadata.prompt)
        if isinstance(own, Mapping):
            own = own.get(side or "query")
            if side == "document":
                return own
        if side == "document":
            return None
        return own or self.by_type.get(metadata.name)


class HarnessEncoder:
    """An embedding model for mteb: texts to unit vectors, through a cache."""

    def __init__(self, embed: Embed, cache: VectorCache | None, instructions: Instructions, meta: Any) -> None:
        """Take over what embeds, what is known already, and what mteb is told of the model."""
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
        """(texts, dimensions) float32 of all batches of `inputs`, each a mapping with `text`."""
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
    """The embedding model's best documents, the first of them ordered by a reranker (RECIPE section 5)."""

    def __init__(
        self,
        encoder: HarnessEncoder,
        judge: PairScorer,
        instructions: Instructions,
        top: int,
        meta: Any,
        own_left_out: Collection[str] = (),
    ) -> None:
        """Take over both models.

        Args:
            encoder: finds the candidates.
            judge: scores the first `top` of each query.
            instructions: of the queries.
            top: documents that the reranker reads.
            meta: what mteb is told of the pair.
            own_left_out: names of tasks in which the document with the query's own id does not count, so that it must
                not take the place of another one that the reranker could read.
        """
        from mteb.models import SearchEncoderWrapper

        self._search = SearchEncoderWrapper(encoder)
        self._judge, self._instructions, self._top = judge, instructions, top
        self._own_left_out = frozenset(own_left_out)
        self._texts: dict[str, str] = {}
        self.mteb_model_meta = meta

    def index(self, corpus: Any, *, task_metadata: Any, **more: Any) -> None:
        """Remember the documents."""
        self._texts = {row["id"]: document_text(row.get("title") or "", row["text"]) for row in corpus}
        self._search.index(corpus, task_metadata=task_metadata, **more)

    def search(self, queries: Any, *, task_metadata: Any, top_k: int, **more: Any) -> dict[str, dict[str, float]]:
        """query id -> {document id: score}; documents that the reranker has read stand above all others."""
        found = self._search.search(queries, task_metadata=task_metadata, top_k=top_k, **more)
        if task_metadata.name in self._own_left_out:
            found = {query: {d: score for d, score in hits.items() if d != query} for query, hits in found.items()}
        texts = dict(zip(queries["id"], queries["text"], strict=True))
        best = {query: sorted(hits, key=lambda d: (-hits[d], d))[: self._top] for query, hits in found.items()}
        asked = [query for query, documents in best.items() if documents]
        documents = [[self._texts[document] for document in best[query]] for query in asked]
        scores = self._judge(
            [texts[query] for query in asked], documents, self._instructions.of(task_metadata, "query")
        )
        for query, judged in zip(asked, scores, strict=True):
            # cosines are at most 1, and probabilities at least 0
            found[query] |= {d: 2.0 + float(score) for d, score in zip(best[query], judged, strict=True)}
        return found


def leave_out_own(task: Any, say: Callable[[str], None]) -> None:
    """Have mteb leave out documents with the query's id in a folder of our own whose queries are documents too.

    mteb goes by the id alone, so the folder must not judge such a document relevant to its query.
    """
    if not hasattr(task, "k_values") or task.metadata.dataset.get("revision") != _LOCAL:
        return
    splits = [split for by_split in task.dataset.values() for split in by_split.values()]
    sets = [_as_set(split) for split in splits]
    own = sum(len(places) for data in sets for places in own_documents(data))
    judged = any(found.get(query, 0) > 0 for data in sets for query, found in data.qrels.items())
    if own and not judged:
        task.ignore_identical_ids = True
        say(f"evaluate: {task.metadata.name}: {own} queries are documents too; a query's own document does not count")


def _as_set(split: Mapping[str, Any]) -> RetrievalSet:
    corpus = {row["id"]: (row.get("title") or "", row["text"]) for row in split["corpus"]}
    return RetrievalSet({row["id"]: row["text"] for row in split["queries"]}, corpus, split["relevant_docs"])
