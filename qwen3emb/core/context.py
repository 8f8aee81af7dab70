"""The arguments of a running stage: the same type for every stage, so that no stage needs to know the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from qwen3emb.core.storage import Storage

__all__ = ["StageContext"]

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class StageContext(Generic[ConfigT]):
    """Configuration, name and folders of a running stage.

    Attributes:
        cfg: configuration of the run.
        name: of the stage, as in the pipeline.
        out: the folder that the stage writes.
        inputs: name -> folder of the stages that this one reads, as far as the run has them.
    """

    cfg: ConfigT
    name: str
    out: Storage
    inputs: Mapping[str, Storage]
