"""The shape of a model that a configuration names: from its `config.json`, else from the table of known ones."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3emb.core.errors import UserError
from qwen3emb.core.location import is_uri
from qwen3emb.core.storage import Storage
from qwen3emb.model.fetch import cache_dir, is_endpoint
from qwen3emb.pipeline.planning.shapes import KNOWN, ModelShape, shape_of

__all__ = ["model_shape"]

_CONFIG = "config.json"


def model_shape(name: str) -> ModelShape | None:
    """The shape of a model given as directory, prepared name, hub id or URI; None for a server, which is not ours.

    Weights are not needed, a folder with `config.json` is enough.

    Raises:
        UserError: the model is neither on this machine nor in the table, or its `config.json` does not tell its shape.
    """
    if is_endpoint(name):
        return None
    text = _config_text(name)
    if text is None:
        known = KNOWN.get(name.partition("@")[0])
        if known is None:
            raise UserError(
                f"the shape of model {name!r} is not known: it is not on this machine and not among "
                f"{', '.join(KNOWN)}; name a folder with its config.json, or fetch it with `qwen3emb fetch-model`"
            )
        return known
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"model {name!r}: its {_CONFIG} is not JSON") from error
    shape = shape_of(content) if isinstance(content, dict) else None
    if shape is None:
        raise UserError(
            f"model {name!r}: its {_CONFIG} names no layers, widths and vocabulary, so it cannot be planned"
        )
    return shape


def _config_text(name: str) -> str | None:
    """The text of the model's `config.json`, None where the model is not within reach."""
    if is_uri(name):
        folder = Storage(name)
        return folder.read_bytes(_CONFIG).decode(errors="replace") if folder.exists(_CONFIG) else None
    for folder_here in (Path(name).expanduser(), cache_dir() / name.partition("@")[0].replace("/", "--")):
        if (folder_here / _CONFIG).is_file():
            return (folder_here / _CONFIG).read_text(encoding="utf-8", errors="replace")
    return None
