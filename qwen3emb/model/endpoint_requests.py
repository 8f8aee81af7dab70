"""Requests to an OpenAI-compatible embedding server: the client, patience with a busy server, the vectors of an answer.

What to send, and what to do with a text that the server refuses, is `endpoint`'s.
"""

from __future__ import annotations

import ipaddress
import os
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np
import tenacity

from qwen3emb.core.errors import StageFailure, UserError

__all__ = ["FURTHER_TRIES", "json_object", "open_client", "post", "unit_vectors"]

_TIMEOUT = 300.0  # seconds for one answer
FURTHER_TRIES = 5
"""How often a request is repeated."""

_BACK_OFF = tenacity.wait_exponential(multiplier=1)  # 1, 2, 4, 8, 16 s
_LONGEST_WAIT = 120.0  # seconds, whatever the server says


def open_client(url: str) -> httpx.Client:
    """A client for requests to `url`, with the environment's proxies, certificates and key.

    Raises:
        UserError: the environment names a proxy that cannot be used.
    """
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return httpx.Client(auth=_with_key, timeout=_TIMEOUT, follow_redirects=True, mounts=_without_proxy(host))
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # a proxy whose package is not installed
        raise UserError(f"{url}: the environment's proxy cannot be used: {error}") from error


def post(client: httpx.Client, url: str, body: Mapping[str, Any]) -> httpx.Response:
    """The server's answer; the request is repeated where the answer is late, incomplete or says `busy`.

    Args:
        client: of `open_client`.
        url: of the request.
        body: sent as JSON.

    Raises:
        StageFailure: the server cannot be reached or does not answer in full.
    """
    patience = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(1 + FURTHER_TRIES),
        wait=_wait,
        retry=tenacity.retry_if_exception_type(httpx.TransportError) | tenacity.retry_if_result(_is_busy),
        retry_error_callback=_last,
    )
    try:
        return patience(client.post, url, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        full = " in full" if "complete message body" in message else ""
        limit = f" ({_TIMEOUT:.0f} s)" if isinstance(error, httpx.TimeoutException) else ""
        raise StageFailure(f"{url} does not answer{full}: {message}{limit}") from error


def _is_busy(answer: httpx.Response) -> bool:
    """Whether the same request may be accepted later."""
    status = answer.status_code
    return status == 429 or status >= 500 or (status == 413 and "Retry-After" in answer.headers)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds to the next try: those of the `Retry-After` header, else longer each time."""
    outcome = state.outcome
    retry_after = "" if outcome is None or outcome.failed else outcome.result().headers.get("Retry-After", "").strip()
    try:
        seconds = (
            float(retry_after)
            if retry_after.isdecimal()
            else parsedate_to_datetime(retry_after).timestamp() - time.time()
        )
    except ValueError:
        seconds = 0.0
    return min(seconds, _LONGEST_WAIT) if seconds > 0 else _BACK_OFF(state)


def _last(state: tenacity.RetryCallState) -> Any:
    """The answer of the last try, or the error that it raised."""
    return state.outcome.result() if state.outcome else None


def _with_key(request: httpx.Request) -> httpx.Request:
    key = os.environ.get("OPENAI_API_KEY", "")
    if key:
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _without_proxy(host: str) -> dict[str, None]:
    """httpx' rule for a host within a range of addresses in NO_PROXY (10.0.0.0/8), which it does not read itself."""
    for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip(), strict=False):
                return {f"all://[{host}]" if ":" in host else f"all://{host}": None}
        except ValueError:  # the host or the entry is a name
            continue
    return {}


def json_object(answer: httpx.Response, url: str) -> dict[str, Any]:
    """The JSON object that an answer is.

    Raises:
        UserError: it is none.
    """
    try:
        content = answer.json()
    except ValueError as error:
        raise UserError(f"{url} does not answer like an OpenAI-compatible embeddings endpoint: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{url} does not answer like an OpenAI-compatible embeddings endpoint: no object")
    return content


def unit_vectors(answer: Mapping[str, Any], texts: Sequence[str], url: str) -> np.ndarray:
    """The embeddings of an answer in the order of the request, of length one.

    Raises:
        UserError: there is not one of each text, or one holds NaN or nothing but zeros.
    """
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        if [row["index"] for row in rows] != list(range(len(texts))) or vectors.ndim != 2:
            raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts, or not numbered from 0 on")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url} does not answer like an OpenAI-compatible embeddings endpoint: {error}") from error
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(wrong):
        text = texts[int(wrong[0])]
        raise UserError(f"{url} gives {len(wrong)} vectors that hold NaN or only zeros, the first for {text[:60]!r}")
    out: np.ndarray = (vectors / norms).astype(np.float32)
    return out
