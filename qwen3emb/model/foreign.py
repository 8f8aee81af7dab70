"""Embedding models that qwen3emb did not export, with the interface of `Encoder`: sentence-transformers, and servers.

`open_encoder` decides by the name of the model: an address (`http://HOST:PORT/v1?model=NAME`) is an OpenAI-compatible
endpoint; a directory with `modules.json` that we did not export is a sentence-transformers model of any architecture;
everything else is a decoder, read by `Encoder`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen3emb.core.errors import UserError
from qwen3emb.model.contract import CONTRACT_FILE
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.endpoint import EndpointEncoder
from qwen3emb.model.fetch import is_endpoint
from qwen3emb.model.loading import quiet_loading
from qwen3emb.model.weight_names import require_loaded

__all__ = ["AnyEncoder", "EndpointEncoder", "SentenceEncoder", "is_foreign", "open_encoder"]


_OF_OTHER_TASKS = re.compile(
    r"(cls|pooler|lm_head|mlm_head|head|score|classifier|decoder|qa_outputs|predictions|vocab_\w+|discriminator_\w+)\."
    r"|.*(position_ids|inv_freq)$"
)
"""Heads and buffers that an encoder's files may hold beside the encoder's weights."""


class AnyEncoder(Protocol):
    """An embedding model, local or on a server."""

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

    Raises:
        UserError: it cannot be loaded or reached.
    """
    if is_endpoint(str(place)):
        return EndpointEncoder(str(place))
    folder = Path(place)
    if is_foreign(folder):
        return SentenceEncoder(folder)
    return Encoder(folder, end_token=end_token, dtype=dtype, threads=threads)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32."""
    wide = np.asarray(vectors, dtype=np.float32)
    out: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return out


def _refuse_pickles(folder: Path) -> None:
    """Refuse modules with pickled weights only, which the library would read."""
    for file in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(file.parent.glob("*.safetensors")):
            raise UserError(f"{file}: pickled weights are not read; save the model as safetensors")


def _refuse_code(folder: Path) -> None:
    """Refuse modules with code of their own, which the library before version 6 runs from any local directory."""
    for kind in _modules(folder, "type"):
        if not kind.startswith("sentence_transformers."):
            raise UserError(f"{folder}/modules.json: {kind} is code of the model's own, which is never run")


def _modules(folder: Path, field: str) -> list[str]:
    """A field of each module of a sentence-transformers directory, in their order."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [str(module[field]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: no readable modules.json of sentence-transformers ({error})") from error


def _require_weights(model: Any, folder: Path) -> None:
    """Refuse a model with missing weights, which the library draws at random and only logs.

    The modules are loaded once more for the list of missing weights, onto the device `meta`, which holds no numbers and
    takes a fraction of a second. Heads of other tasks may
    be left over. The pooler of BERT and its kin is missing in many published models; the library does not use it.
    """
    for module, path in zip(model, _modules(folder, "path"), strict=True):
        network = getattr(module, "auto_model", None)
        if network is None:
            continue
        with quiet_loading():
            _, info = type(network).from_pretrained(
                folder / path,
                config=network.config,
                device_map="meta",
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        poolers = [name for name in info["missing_keys"] if name.startswith("pooler.")]
        require_loaded(folder, info, [*poolers, *(n for n in info["unexpected_keys"] if _OF_OTHER_TASKS.match(n))])


def _read_controls_as_text(model: Any) -> None:
    """Have control tokens that are written out in a text read as ordinary characters, as our models do (`templates`).

    Left as it is where the model's own prompts hold control tokens.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    tokens = getattr(tokenizer, "all_special_tokens", [])
    if tokens and not any(token in prompt for prompt in (model.prompts or {}).values() for token in tokens):
        tokenizer.split_special_tokens = True


class SentenceEncoder:
    """A sentence-transformers directory; queries get its own `query` prompt where it has one."""

    def __init__(self, folder: Path) -> None:
        """Load the model without running code from its directory.

        Raises:
            UserError: the library cannot load it, its files do not hold all of its weights, weights are pickled, or a
                module is code of its own.
        """
        from sentence_transformers import SentenceTransformer

        _refuse_pickles(folder)
        _refuse_code(folder)
        options: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        try:
            with quiet_loading():
                self._model: Any = SentenceTransformer(str(folder), **options)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # the library raises nearly anything on a damaged folder
            raise UserError(
                f"{folder}: sentence-transformers cannot load it: {' '.join(str(error).split())}"
            ) from error
        _require_weights(self._model, folder)
        _read_controls_as_text(self._model)
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
