"""Configuration of evaluation, index and serving. Imports no torch, ray or vllm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from qwen3emb.config.data import Section

__all__ = ["EvaluateConfig", "IndexConfig", "ServeConfig"]

VectorSize = Annotated[str, StringConstraints(pattern=r"^(float32|(int8|binary)(\+rescore)?)(@[1-9]\d*)?$")]


class EvaluateConfig(Section):
    """`evaluate`: retrieval metrics of base, weak, supervised, distilled, merged, and merged + reranker."""

    dataset: str = "heldout"
    """`heldout` or a BEIR folder (corpus.jsonl, queries.jsonl, qrels/). `heldout` is every held-out set of the run:
    docstrings of held-out Python modules, held-out queries of labelled datasets, queries written for held-out documents
    (`synthesize.evaluation`); the first one there is the main one, the others have tables of their own."""
    split: str = "test"
    """Qrels split of a BEIR folder."""
    compare: list[Literal["base", "weak", "supervised", "distilled"]] = Field(
        default=["base", "weak", "supervised", "distilled"]
    )
    """Models that are evaluated beside the merged one, where the run has them."""
    max_query_tokens: int = Field(default=64, ge=4)
    """Query length with instruction and end token."""
    max_document_tokens: int = Field(default=256, ge=4)
    """Document length with end token."""
    rerank_top: int = Field(default=100, ge=1)
    """Documents per query that the reranker scores (the paper's 100)."""
    rerank_max_tokens: int = Field(default=512, ge=64)
    """Whole input length of the reranker."""
    rerank_weight: float | None = Field(default=1.0, ge=0, le=1)
    """Share of the reranker's score in the final order, against the embedding's, both standardised per query; 1 = the
    reranker alone decides (the paper's); null = the best of eleven shares on the dev set, where such a choice gains on
    queries that it has not seen (docs/evaluation.md), else 0; the reranker alone is reported beside it."""
    rerank_dev_top: int = Field(default=20, ge=2)
    """Documents per dev query that are reranked to find that share."""
    recall_at: list[int] = Field(default=[1, 10, 100], min_length=1)
    """k of recall@k."""
    vectors: list[VectorSize] = Field(default=["int8", "binary", "int8+rescore", "binary+rescore"])
    """Sizes of the merged model's vectors whose nDCG@10 is compared with that of whole float32 vectors: `float32`,
    `int8` or `binary`, the latter two with `+rescore` or without, and `@N` for the N leading dimensions, as in
    `binary+rescore@256`. Costs no encoding."""
    rescore: int = Field(default=10, ge=1)
    """With `+rescore`, so many times ten hits are rescored, as by `index.rescore`."""
    few_rows: int = Field(default=1000, ge=0)
    """Languages of queries with fewer training rows are named in the report by language: their figures are the least
    to be trusted."""
    workers: int = Field(default=2, ge=1)
    """Encoding and reranking workers."""


class IndexConfig(Section):
    """`index`: embed a corpus into a searchable index on storage."""

    source: str = "heldout"
    """`heldout` (functions of held-out Python modules; without such modules the passages), `passages` (both from the
    corpus stage), or a BEIR folder."""
    max_tokens: int = Field(default=256, ge=4)
    """Document length with end token."""
    vectors: Literal["float32", "int8", "binary"] = "float32"
    """What a search holds in memory of each dimension: four bytes, one byte (calibrated on the corpus's own vectors),
    or one bit. With int8 and binary the texts stay on disk as well."""
    dimensions: int | None = Field(default=None, ge=1)
    """Keep this many leading dimensions, normalised again; default all."""
    rescore: int = Field(default=10, ge=0)
    """With int8 and binary vectors so many times the hits asked for are found, then ordered by float16 vectors that
    lie on disk; 0 = none, and no such vectors."""
    workers: int = Field(default=2, ge=1)
    """Encoding workers."""


class ServeConfig(Section):
    """`serve`: embedder, reranker and search on Ray Serve."""

    host: str = "127.0.0.1"
    """Address of the HTTP server."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the HTTP server."""
    embedder_replicas: int = Field(default=1, ge=1)
    """Embedder replicas."""
    reranker_replicas: int = Field(default=1, ge=1)
    """Reranker replicas."""
    max_query_tokens: int = Field(default=512, ge=4)
    """Longest query; longer input is refused with 400 unless the request asks to truncate."""
    max_document_tokens: int = Field(default=512, ge=4)
    """Longest document."""
    max_batch_size: int = Field(default=16, ge=1)
    """Requests that are computed together."""
    batch_wait_s: float = Field(default=0.01, ge=0)
    """How long a request waits for others."""
    max_queued_requests: int = Field(default=200, ge=1)
    """Requests that may wait; more are answered with 429."""
    threads: int = Field(default=1, ge=1)
    """CPU threads per replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs per replica."""
