"""Models on storage: those of the training stages, and the embedding model that later stages score with."""

from __future__ import annotations

from typing import Any

from qwen3emb.core.artifact import read_record
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.model.contract import CONTRACT_FILE
from qwen3emb.model.fetch import is_endpoint, model_place

__all__ = ["WEAK", "checkpoint_label", "checkpoints", "final_model", "named_model", "scoring_model"]

WEAK = "weak"
"""Name in the configuration of the final model of the weakly supervised stage."""


def final_model(folder: Storage) -> Storage:
    """The final model of a training stage, a directory that qwen3emb exported.

    Raises:
        UserError: the stage is not complete, or is not a training stage.
    """
    return folder / str(_metric(folder, "model"))


def checkpoints(folder: Storage) -> list[Storage]:
    """All checkpoints that a training stage kept, oldest first; the final model is the last one.

    Raises:
        UserError: the stage is not complete, or is not a training stage.
    """
    return [folder / str(name) for name in _metric(folder, "checkpoints")]


def checkpoint_label(uri: str) -> str:
    """A checkpoint's name in reports, such as `step_000040`; `distill step_000040` where it is of that stage."""
    *folders, name = uri.rsplit("/", 3)
    return f"distill {name}" if "distill" in folders[-2:-1] else name


def scoring_model(name: str, weak: Storage | None, end_token: str) -> tuple[str, str | None]:
    """(directory, URI or address, end token to give to `Encoder`) of the embedding model called `name`.

    Args:
        name: `weak`, a model name or directory, or the address of a server.
        weak: folder of the weakly supervised stage, where the run has one.
        end_token: for a model without a contract (`models.end_token`).

    Raises:
        UserError: there is no such model.
    """
    if name != WEAK:
        return named_model(name, end_token)
    if weak is None:
        raise UserError("the model is `weak`, but the run has no stage weak; name another model or add that section")
    return final_model(weak).uri, None


def named_model(name: str, end_token: str) -> tuple[str, str | None]:
    """(directory or address, end token to give to `Encoder`) of an embedding model that is none of the run's.

    Args:
        name: a model name or directory, or the address of a server.
        end_token: for a model without a contract (`models.end_token`).

    Raises:
        UserError: there is no such model.
    """
    if is_endpoint(name):
        return name, None
    folder = Storage(model_place(name))
    # The contract of an exported model names its end token; None takes that one.
    return folder.uri, None if folder.exists(CONTRACT_FILE) else end_token


def _metric(folder: Storage, name: str) -> Any:
    metrics = read_record(folder).get("metrics", {})
    if not metrics.get(name):
        raise UserError(f"{folder.uri}: its record names no {name}, so it is not a training stage's folder")
    return metrics[name]
