"""Embedding models that are not ours, behind the methods of `Encoder`: sentence-transformers, and served ones.

`open_encoder` decides by what stands there: an address (`http://HOST:PORT/v1?model=NAME`) is an OpenAI-compatible
endpoint; a directory with `modules.json` that we did not export is a sentence-transformers model of any architecture;
everything else is a decoder, read by `Encoder`.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen3emb.errors import StageFailure, UserError
from qwen3emb.model.contract import CONTRACT_FILE
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.fetch import is_endpoint
from qwen3emb.model.loading import stored_dtype
from qwen3emb.templates import query_prompt

__all__ = ["AnyEncoder", "EndpointEncoder", "SentenceEncoder", "is_foreign", "open_encoder"]

_ATTEMPTS = 5
_TIMEOUT = 300.0  # seconds for one answer


class AnyEncoder(Protocol):
    """What embeds texts."""

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        ...

    def encode(self, texts: Sequence[str], *, max_tokens: int, instruction: str | None = None) -> np.ndarray:
        """(len(texts), dimensions) normalised float32; `instruction` is given for queries."""
        ...


def is_foreign(folder: Path) -> bool:
    """Whether a directory holds a sentence-transformers model that we did not export."""
    return (folder / "modules.json").is_file() and not (folder / CONTRACT_FILE).is_file()


def open_encoder(
    place: str | Path, *, end_token: str | None = None, dtype: str | None = None, threads: int | None = None
) -> AnyEncoder:
    """The model at an address or in a directory; arguments as of `Encoder`, which alone uses all of them.

    `dtype` None takes the one that the weights are stored in.

    Raises:
        UserError: it cannot be loaded or reached.
    """
    if is_endpoint(str(place)):
        return EndpointEncoder(str(place))
    folder = Path(place)
    if is_foreign(folder):
        return SentenceEncoder(folder)
    return Encoder(folder, end_token=end_token, dtype=dtype or stored_dtype(folder), threads=threads)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32."""
    wide = np.asarray(vectors, dtype=np.float32)
    out: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return out


def _refuse_pickles(folder: Path) -> None:
    """The library would read pickled weights of a module where there are no safetensors."""
    for file in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(file.parent.glob("*.safetensors")):
            raise UserError(f"{file}: pickled weights are not read; save the model as safetensors")


def _refuse_code(folder: Path) -> None:
    """Before version 6 the library runs a module's own code where the directory is local, asked or not."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [str(module["type"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: no readable modules.json of sentence-transformers ({error})") from error
    for kind in kinds:
        if not kind.startswith("sentence_transformers."):
            raise UserError(f"{folder}/modules.json: {kind} is code of the model's own, which is never run")


class SentenceEncoder:
    """A sentence-transformers directory; queries get its own `query` prompt where it has one."""

    def __init__(self, folder: Path) -> None:
        """Load it, without running code of its own.

        Raises:
            UserError: the library cannot load it, weights are pickled, or a module is code of its own.
        """
        from sentence_transformers import SentenceTransformer

        _refuse_pickles(folder)
        _refuse_code(folder)
        try:
            self._model: Any = SentenceTransformer(
                str(folder), trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise UserError(
                f"{folder}: sentence-transformers cannot load it: {' '.join(str(error).split())}"
            ) from error
        self._longest = self._model.max_seq_length

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str], *, max_tokens: int, instruction: str | None = None) -> np.ndarray:
        """(len(texts), dimensions) normalised float32; texts are cut to `max_tokens` or the model's own limit."""
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        self._model.max_seq_length = min(max_tokens, self._longest) if self._longest else max_tokens
        prompt = (self._model.prompts or {}).get("query") if instruction else None
        return _unit(self._model.encode(list(texts), prompt=prompt or "", show_progress_bar=False))


class EndpointEncoder:
    """An OpenAI-compatible `/v1/embeddings`; the key, where one is needed, is the variable OPENAI_API_KEY.

    Queries carry the instruction in the text, as Qwen3 Embedding's do. The server decides where texts are cut.
    """

    def __init__(self, address: str) -> None:
        """Ask for one vector.

        Args:
            address: `http://HOST:PORT/v1?model=NAME`; without a model name the server's default.

        Raises:
            UserError: it does not answer as such a server does.
        """
        parts = urllib.parse.urlsplit(address)
        names = urllib.parse.parse_qs(parts.query).get("model", [""])
        self._model = names[0]
        self._url = urllib.parse.urlunsplit(
            (parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/embeddings", "", "")
        )
        self._dimensions = int(self._ask(["a text"]).shape[1])

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return self._dimensions

    def encode(self, texts: Sequence[str], *, max_tokens: int, instruction: str | None = None) -> np.ndarray:
        """(len(texts), dimensions) normalised float32; `max_tokens` is left to the server.

        Raises:
            UserError: the server refuses the request.
            StageFailure: it does not answer, five times.
        """
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        before = query_prompt(instruction) if instruction else ""
        return self._ask([before + text for text in texts])

    def _ask(self, texts: list[str]) -> np.ndarray:
        body = json.dumps(
            {"input": texts, "encoding_format": "float"} | ({"model": self._model} if self._model else {})
        )
        key = os.environ.get("OPENAI_API_KEY", "")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self._url, body.encode("utf-8", "replace"), headers)
        return _vectors(self._answer(request), len(texts), self._url)

    def _answer(self, request: urllib.request.Request) -> Any:
        """The server's JSON; a busy or failing server is asked again after 1, 2, 4, 8 seconds."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 429 and error.code < 500:
                    said = error.read(300).decode("utf-8", "replace")
                    raise UserError(f"{self._url} refuses the request ({error.code}): {said}") from error
                problem = f"HTTP {error.code}"
            except (OSError, ValueError) as error:
                problem = str(error)
            if attempt + 1 < _ATTEMPTS:
                time.sleep(2**attempt)
        raise StageFailure(f"{self._url} did not answer {_ATTEMPTS} times; the last time: {problem}")


def _vectors(answer: Any, count: int, url: str) -> np.ndarray:
    """The embeddings of an answer in the order of the request."""
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        if len(vectors) != count or vectors.ndim != 2:
            raise ValueError(f"{len(vectors)} vectors for {count} texts")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url} does not answer like an OpenAI-compatible embeddings endpoint: {error}") from error
    return _unit(vectors)
