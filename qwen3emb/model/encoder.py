"""The encoder of texts into vectors: templates, packing by token budget, last-token pooling, normalisation, MRL.

Mining, filtering, evaluation, indexing and serving embed texts with it. A vector depends on its text
and instruction only, never on the batch (tested against sentence-transformers and vLLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen3emb.core.errors import UserError
from qwen3emb.model.contract import CONTRACT_FILE, Contract, read_contract
from qwen3emb.model.loading import compute_dtype, load_tokenizer, load_trunk, require_vocabulary
from qwen3emb.model.packing import TOKEN_BUDGET, budgeted, pack, pooled
from qwen3emb.text.templates import EmbeddingTemplate, query_prompt

__all__ = ["Encoder", "normalised_prefix"]


def normalised_prefix(vectors: Tensor, dimensions: int | None = None) -> Tensor:
    """L2-normalised rows, cut to their first `dimensions` entries before (paper section 2, MRL)."""
    # Cut first, then normalise: the prefix of a unit vector is no unit vector.
    cut = vectors if dimensions is None else vectors[:, :dimensions]
    return torch.nn.functional.normalize(cut, dim=-1)


def _check_contract(model_dir: Path, contract: Contract | None) -> None:
    """Refuse a model that was trained with another prompt or pooling: its vectors would be silently worse."""
    if contract is None or contract.kind != "embedding":
        return
    trained = contract.prompts.get("query", query_prompt(contract.instruction)), contract.pooling, contract.normalised
    if trained != (query_prompt(contract.instruction), "last_token", True):
        raise UserError(
            f"{model_dir}/{CONTRACT_FILE}: the model was trained with another prompt or pooling than this version of "
            "qwen3emb uses, so its vectors would be wrong; use the version that exported it, or train again"
        )


class Encoder:
    """An embedding model in this process."""

    def __init__(
        self,
        model_dir: Path,
        *,
        end_token: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model_dir: directory of a decoder; the contract of one that qwen3emb exported names its end token.
            end_token: token the embedding is read at; needed for directories without a contract.
            dtype: of the weights; default that of `compute_dtype`.
            threads: CPU threads of this process.
            device: torch device; default CUDA where there is one.

        Raises:
            UserError: no weights, the end token is unknown, or the contract names another prompt or pooling.
        """
        self.contract = read_contract(model_dir)
        _check_contract(model_dir, self.contract)
        end = end_token or (self.contract.end_token if self.contract else None)
        if not end:
            raise UserError(f"{model_dir}: no qwen3emb.json in it, so name its end token (models.end_token)")
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.trunk = load_trunk(model_dir, dtype or compute_dtype(model_dir, self.device)).to(self.device)
        self.template = EmbeddingTemplate(load_tokenizer(model_dir), end)
        require_vocabulary(model_dir, self.trunk, self.template.tokenizer)

    @property
    def dimensions(self) -> int:
        """Length of the full vector."""
        return int(self.trunk.config.hidden_size)

    @property
    def context(self) -> int:
        """The model's longest input, tokens."""
        return int(self.trunk.config.max_position_embeddings)

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int,
        instruction: str | None = None,
        dimensions: int | None = None,
        token_budget: int = TOKEN_BUDGET,
    ) -> np.ndarray:
        """Normalised float32 vectors, (len(texts), dimensions).

        Args:
            texts: queries (with `instruction`) or documents (without).
            max_tokens: longest input with instruction and end token; longer texts lose their end.
            instruction: the task; None for documents.
            dimensions: keep this many leading dimensions, re-normalised.
            token_budget: tokens per forward pass.

        Raises:
            UserError: `max_tokens` exceeds the model's context, or `dimensions` its vector.
        """
        if max_tokens > self.context:
            raise UserError(f"max_tokens {max_tokens} is more than the model's context of {self.context} tokens")
        if dimensions is not None and not 1 <= dimensions <= self.dimensions:
            raise UserError(f"dimensions {dimensions}: the model has 1 to {self.dimensions}")
        prefix, leaves = self.template.encode(texts, max_tokens, instruction)
        out = np.empty((len(leaves), dimensions or self.dimensions), dtype=np.float32)
        with torch.inference_mode():
            for group in budgeted([len(leaf) for leaf in leaves], token_budget):
                # One tree: the instruction is the prefix of every query and is computed once per group. `group`
                # numbers the texts in their given order, which may differ from the order of computation.
                batch = pack([(prefix, [leaves[i] for i in group])]).to(self.device)
                vectors = normalised_prefix(pooled(self.trunk, batch), dimensions)
                out[group] = vectors.cpu().numpy()
        return out
