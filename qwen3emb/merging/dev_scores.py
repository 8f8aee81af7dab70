"""nDCG@10 of each dev query by a model on storage: an embedding model, or a reranker of the best documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwen3emb.config.run import RunConfig
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.encoding.pool import Encoders, Rerankers
from qwen3emb.metrics.order import best_first
from qwen3emb.metrics.retrieval import per_query, top_run
from qwen3emb.text.evaluation_sets import first_set
from qwen3emb.text.instructions import instructions
from qwen3emb.text.retrieval_set import RetrievalSet
from qwen3emb.text.templates import TextLimits

__all__ = ["DevScores", "DevSet", "EmbeddingScores", "RerankerScores", "dev_set"]

_DEPTH = 10


@dataclass(frozen=True)
class DevSet:
    """The run's dev set and the instruction of its queries."""

    data: RetrievalSet
    instruction: str


def dev_set(ctx: StageContext[RunConfig]) -> DevSet:
    """The run's dev set, for `merge.keep: best` or `merge.search`.

    Raises:
        UserError: the run has none, or one of a single query.
    """
    found = first_set(ctx.inputs, "dev")
    if found is None or found.size < 2:
        count = "one dev query only" if found else "no dev queries"
        best = ctx.cfg.merge.keep == "best"
        setting, instead = (
            ("keep: best", "set merge.keep to merged") if best else ("search", "leave merge.search false")
        )
        raise UserError(f"merge.{setting}: the run has {count}; raise corpus.dev_share, or {instead}")
    return DevSet(found.read(), instructions(ctx.cfg, [found.name])[found.name])


class EmbeddingScores:
    """Scores embedding models; the actors start with the first one and end with the `with` block."""

    def __init__(self, cfg: RunConfig, dev: DevSet) -> None:
        """Nothing is loaded yet."""
        self._cfg, self._data, self._instruction = cfg, dev.data, dev.instruction
        self._pool: Encoders | None = None

    def __call__(self, model: str) -> dict[str, float]:
        """Dev query -> nDCG@10 by the model at this URI."""
        figures = per_query(self._data, self.run(model, _DEPTH), [_DEPTH])
        return {query: row["ndcg@10"] for query, row in figures.items()}

    def run(self, model: str, top: int) -> dict[str, dict[str, float]]:
        """Dev query -> its best documents and their cosines."""
        cfg, limits = self._cfg, TextLimits.of(self._cfg.evaluate)
        if self._pool is None:
            gpus = cfg.cluster.gpus_per_worker
            self._pool = Encoders(model, workers=cfg.evaluate.workers, gpus_per_worker=gpus)
        else:
            self._pool.use(model)
        asked = list(self._data.queries.values())
        queries = self._pool.encode(asked, max_tokens=limits.query, instruction=self._instruction)
        documents = self._pool.encode(self._data.texts(), max_tokens=limits.document)
        return top_run(self._data, queries @ documents.T, top)

    def __enter__(self) -> EmbeddingScores:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the actors."""
        if self._pool is not None:
            self._pool.close()


class RerankerScores:
    """Scores rerankers by the order that they give to the documents which an embedding model ranks first."""

    def __init__(self, cfg: RunConfig, dev: DevSet, embedding: str) -> None:
        """Nothing is loaded yet; `embedding` is the URI of the embedding model."""
        self._cfg, self._dev, self._embedding = cfg, dev, embedding
        self._tops: dict[str, list[str]] = {}

    def __call__(self, model: str) -> dict[str, float]:
        """Dev query -> nDCG@10 by the model at this URI, whose actors end with the call."""
        cfg, limits = self._cfg, TextLimits.of(self._cfg.evaluate)
        if not self._tops:
            with EmbeddingScores(cfg, self._dev) as embedding:
                run = embedding.run(self._embedding, cfg.evaluate.rerank_dev_top)
            self._tops = {query: list(documents) for query, documents in run.items()}
        texts = dict(zip(self._dev.data.corpus, self._dev.data.texts(), strict=True))
        gpus = cfg.cluster.gpus_per_worker
        with Rerankers(model, workers=cfg.evaluate.workers, gpus_per_worker=gpus) as pool:
            scores = pool.score(
                [self._dev.data.queries[query] for query in self._tops],
                [[texts[document] for document in top] for top in self._tops.values()],
                max_tokens=cfg.evaluate.rerank_max_tokens,
                max_query_tokens=limits.query,
                instruction=self._dev.instruction,
            )
        run = {}
        for (query, top), row in zip(self._tops.items(), scores, strict=True):
            order = best_first(row).tolist()  # of equal scores the one that the embedding model ranks higher
            run[query] = {top[place]: float(len(top) - rank) for rank, place in enumerate(order)}
        return {query: row["ndcg@10"] for query, row in per_query(self._dev.data, run, [_DEPTH]).items()}


DevScores = Callable[[str], dict[str, float]]
"""URI of a model -> dev query -> nDCG@10."""
