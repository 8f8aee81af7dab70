"""The model of `models.retrieval`: what finds the personas of a passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qwen3emb.config.run import ModelsConfig
from qwen3emb.model.contract import CONTRACT_FILE
from qwen3emb.model.fetch import is_endpoint, resolve_model

if TYPE_CHECKING:
    from qwen3emb.model.foreign import AnyEncoder

__all__ = ["embedded", "retrieval_model"]

_CHARACTERS = 4000  # of a passage; such models read less than that


def retrieval_model(models: ModelsConfig) -> AnyEncoder:
    """The model, opened as every model is: nothing pickled is read, and none of its own code runs.

    Raises:
        UserError: it is not there, or cannot be opened so.
    """
    from qwen3emb.model.foreign import open_encoder  # torch, which the driver does without

    name = str(models.retrieval)
    if is_endpoint(name):
        return open_encoder(name)
    folder = resolve_model(name)
    end_token = None if (folder / CONTRACT_FILE).is_file() else models.end_token
    return open_encoder(folder, end_token=end_token, threads=1)


def embedded(model: AnyEncoder, texts: Sequence[str]) -> np.ndarray:
    """(len(texts), dimensions) normalised float32 of the beginnings of texts."""
    longest = min(_CHARACTERS, getattr(model, "context", _CHARACTERS))
    return model.encode([text[:_CHARACTERS] for text in texts], max_tokens=longest)
