"""The HTTP ingress: `/v1/embeddings`, `/v1/calibration`, `/v1/rerank`, `/search`, `/v1/models`, `/health`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from qwen3emb.core.storage import Storage
from qwen3emb.metrics.order import best_first
from qwen3emb.search.index import Hit, read_info
from qwen3emb.search.small import read_calibration
from qwen3emb.text.documents import document_text
from qwen3emb.text.templates import TextLimits
from serve.batching import Failure, split
from serve.inputs import EmbeddingInputs, Prepared, RerankInputs
from serve.outputs import calibration_body, check_output, encoded, typed
from serve.schema import (
    ApiError,
    EmbeddingRequest,
    RerankRequest,
    SearchRequest,
    embedding_response,
    model_list,
    overloaded,
    rerank_response,
    unknown_model,
    validation_error,
)

__all__ = ["RETRY_AFTER_S", "Gateway", "Served", "app"]

RETRY_AFTER_S = 1
app = FastAPI(title="qwen3emb", description="Embeddings, reranking and search of one run's models.")


@dataclass(frozen=True)
class Served:
    """The models and the index that a server serves.

    Attributes:
        name: of the run; the models are NAME-embedding and NAME-reranker.
        embedding: directory or URI of the embedding model.
        reranker: directory or URI of the reranker, None without one.
        index: directory or URI of the search index, None without one.
        limits: longest query and document, in tokens.
    """

    name: str
    embedding: str
    reranker: str | None
    index: str | None
    limits: TextLimits

    @property
    def embedding_name(self) -> str:
        """The embedding model's name in the API."""
        return f"{self.name}-embedding"

    @property
    def reranker_name(self) -> str:
        """The reranker's name in the API."""
        return f"{self.name}-reranker"


@app.exception_handler(ApiError)
async def _api_error(_request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers)


@app.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return await _api_error(request, validation_error(error.errors()))


@app.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return await _api_error(request, ApiError(error.status_code, f"{error.detail}: {request.url.path}"))


@app.exception_handler(Exception)
async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    message = f"the server failed on this request ({type(error).__name__}); its log has the details"
    return await _api_error(request, ApiError(500, message, kind="server_error"))


# Above the class: the ingress decorator pickles the class with the names that are defined by then.
async def _computed(handle: Any, prepared: Prepared, dimensions: int | None = None) -> np.ndarray:
    """The vectors or scores that a deployment computes of the inputs, one row each, in their order.

    Raises:
        ApiError: 429 where too many requests wait, 500 where the model gave no valid answer, 503 where the deployment
            is not available.
    """
    parts = list(split(prepared, dimensions))
    responses = [handle.remote(job) for _, job in parts]
    try:
        results = await asyncio.gather(*responses)
    except BackPressureError as error:
        await asyncio.to_thread(_cancel, responses)  # it may wait for the router
        raise overloaded(RETRY_AFTER_S) from error
    except DeploymentUnavailableError as error:
        raise ApiError(503, "the model is not available", kind="server_error") from error
    failed = next((r for r in results if isinstance(r, Failure)), None)
    if failed is not None:
        raise ApiError(500, failed.message, kind="server_error")
    joined: np.ndarray = np.concatenate(results)
    ordered: np.ndarray = np.empty_like(joined)
    ordered[np.concatenate([numbers for numbers, _ in parts])] = joined
    return ordered


def _cancel(responses: Sequence[Any]) -> None:
    """Cancel calls; a call that has failed raises its error again, which is ignored."""
    for response in responses:
        with suppress(RayServeException):
            response.cancel()


@serve.ingress(app)
class Gateway:
    """Checks and tokenises requests, and hands finished token ids to the model deployments."""

    def __init__(
        self,
        served: Served,
        embedder: DeploymentHandle[Any],
        reranker: DeploymentHandle[Any] | None,
        searcher: DeploymentHandle[Any] | None,
    ) -> None:
        """Load the tokenizers and the calibration of the index.

        Args:
            served: models and index.
            embedder: handle of the deployment of the embedding model.
            reranker: of the reranker, None without one.
            searcher: of the search index, None without one.
        """
        self._served, self._embedder, self._reranker, self._searcher = served, embedder, reranker, searcher
        self._created = int(time.time())
        self._embedding_inputs = EmbeddingInputs.of_model(served.embedding, served.limits)
        self._rerank_inputs = RerankInputs.of_model(served.reranker, served.limits) if served.reranker else None
        index = Storage(served.index) if served.index else None
        self._index_dimension = read_info(index).dimension if index else None
        self._ranges = read_calibration(index) if index else None

    @app.get("/health")
    async def health(self) -> JSONResponse:
        """200 when every model is loaded, else 503."""
        status = await asyncio.to_thread(serve.status)
        application = status.applications.get(serve.get_replica_context().app_name)
        parts = {n: d.status.value for n, d in application.deployments.items()} if application else {}
        healthy = bool(parts) and all(state == "HEALTHY" for state in parts.values())
        return JSONResponse({"status": "ok" if healthy else "loading", "deployments": parts}, 200 if healthy else 503)

    @app.get("/v1/models")
    async def models(self) -> JSONResponse:
        """The names of what is served."""
        reranker = [self._served.reranker_name] if self._reranker else []
        return JSONResponse(model_list([self._served.embedding_name, *reranker], self._created))

    @app.post("/v1/embeddings")
    async def embeddings(self, request: EmbeddingRequest) -> JSONResponse:
        """OpenAI's embeddings, with instructions."""
        name = self._served.embedding_name
        if request.model not in (None, name):
            raise unknown_model(str(request.model), [name])
        check_output(request, self._embedding_inputs.dimensions, self._ranges)
        prepared = await asyncio.to_thread(self._embedding_inputs.prepare, request)
        vectors = typed(
            await _computed(self._embedder, prepared, request.dimensions), request.output_dtype, self._ranges
        )
        data = [encoded(vector, request.encoding_format) for vector in vectors]
        return JSONResponse(embedding_response(name, data, prepared.tokens, prepared.truncated))

    @app.get("/v1/calibration")
    async def calibration(self) -> JSONResponse:
        """The range of each dimension in the index: what a number of `output_dtype` int8 stands for."""
        return JSONResponse(calibration_body(self._ranges))

    @app.post("/v1/rerank")
    @app.post("/v2/rerank", include_in_schema=False)
    async def rerank(self, request: RerankRequest) -> JSONResponse:
        """Cohere's and Jina's rerank, with instructions."""
        name = self._served.reranker_name
        known = [name] if self._rerank_inputs else []
        if request.model not in (None, *known) or not known:
            raise unknown_model(request.model or name, known)
        prepared, scores = await self._judged(
            request.query,
            request.texts(),
            instruction=request.instruction,
            truncate=request.truncate,
            max_tokens_per_doc=request.max_tokens_per_doc,
        )
        number = f"rerank-{uuid.uuid4().hex}"
        return JSONResponse(rerank_response(name, request, scores, prepared.tokens, prepared.truncated, number))

    @app.post("/search")
    async def search(self, request: SearchRequest) -> JSONResponse:
        """The indexed documents that answer a query best."""
        if self._searcher is None:
            raise ApiError(404, "this server has no index; run the stage `index` and serve again")
        if request.rerank and self._rerank_inputs is None:
            raise unknown_model(self._served.reranker_name, [])
        embedding_request = EmbeddingRequest(
            input=request.query,
            input_type="query",
            instruction=request.instruction,
            truncate=request.truncate,
        )
        prepared = await asyncio.to_thread(self._embedding_inputs.prepare, embedding_request)
        vector = (await _computed(self._embedder, prepared, self._index_dimension))[0]
        top = max(request.top_k, request.rerank_top) if request.rerank else request.top_k
        hits: list[Hit] = await self._searcher.remote(vector, top)
        entries = [asdict(hit) for hit in hits]
        tokens = prepared.tokens
        if request.rerank and hits:
            texts = [document_text(hit.title, hit.text) for hit in hits]
            judged, scores = await self._judged(request.query, texts, instruction=request.instruction, truncate=True)
            tokens += judged.tokens
            order = best_first(scores)
            entries = [entries[i] | {"rerank_score": float(scores[i])} for i in order]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"query": request.query, "hits": entries[: request.top_k], "usage": usage})

    async def _judged(self, query: str, documents: list[str], **options: Any) -> tuple[Prepared, np.ndarray]:
        """The prepared inputs and a score for each document."""
        assert self._rerank_inputs is not None, "callers check that there is a reranker"
        prepared = await asyncio.to_thread(self._rerank_inputs.prepare, query, documents, **options)
        return prepared, await _computed(self._reranker, prepared)
