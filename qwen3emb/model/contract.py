"""`qwen3emb.json` in a model directory: how its inputs are built, so that serving equals training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from qwen3emb.core.errors import UserError

__all__ = ["CONTRACT_FILE", "Contract", "read_contract", "write_contract"]

CONTRACT_FILE = "qwen3emb.json"


@dataclass(frozen=True)
class Contract:
    """How a model's inputs are built and its outputs are read.

    Attributes:
        kind: embedding or reranker.
        instruction: default instruction of queries.
        end_token: token the embedding is read at (empty for rerankers).
        max_tokens: longest input it was made for.
        dimensions: length of the full vector (0 for rerankers).
        mrl_dims: prefixes it was trained to be cut to.
        pooling: where the vector is read; embedding models only, which are normalised after it.
        prompts: prompt in front of a query and of a document; embedding models only.
        normalised: whether vectors have length one; false for rerankers.
        template: a reranker's whole input with `{instruction}`, `{query}` and `{document}` for what goes in.
        yes_no: ids of a reranker's two answers; its score is sigmoid(logit yes - logit no) at the last position.
    """

    kind: Literal["embedding", "reranker"]
    instruction: str
    end_token: str
    max_tokens: int
    dimensions: int = 0
    mrl_dims: list[int] = field(default_factory=list)
    pooling: str = "last_token"
    prompts: dict[str, str] = field(default_factory=dict)
    normalised: bool = True
    template: str = ""
    yes_no: list[int] = field(default_factory=list)


def write_contract(model_dir: Path, contract: Contract) -> None:
    """Write the contract into a model directory."""
    (model_dir / CONTRACT_FILE).write_text(json.dumps(asdict(contract), indent=2) + "\n", encoding="utf-8")


def read_contract(model_dir: Path) -> Contract | None:
    """The contract of a model directory that qwen3emb exported; None for any other model.

    Raises:
        UserError: the file is damaged.
    """
    file = model_dir / CONTRACT_FILE
    if not file.is_file():
        return None
    try:
        return Contract(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a valid contract ({error}); export the model again") from error
