"""What a running stage is given: the same for every stage, so that none of them knows the graph of stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from qwen3emb.core.storage import Storage

__all__ = ["StageContext"]

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class StageContext(Generic[ConfigT]):
    """What a running stage is given.

    Attributes:
        cfg: the run.
        name: of the stage.
        out: its folder.
        inputs: the folders of the stages before it that the run has, by name.
    """

    cfg: ConfigT
    name: str
    out: Storage
    inputs: Mapping[str, Storage]
