"""The yes / no reranker: relevance of documents to a query (RECIPE section 1, paper section 2).

Documents of one query share the system, instruction and query prefix, which is computed once per pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3emb.core.errors import UserError
from qwen3emb.model.contract import CONTRACT_FILE, Contract, read_contract
from qwen3emb.model.loading import compute_dtype, load_causal, load_tokenizer, require_vocabulary
from qwen3emb.model.packing import TOKEN_BUDGET, PackedBatch, budgeted, pack
from qwen3emb.text.templates import RerankTemplate

__all__ = ["Reranker", "answer_logits", "answer_states", "rerank_tree"]


def answer_states(model: Any, batch: PackedBatch) -> Tensor:
    """(number of leaves, hidden) states that predict the answer token."""
    states = model.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, packed=batch, use_cache=False
    ).last_hidden_state
    # (1, T, hidden) -> (leaves, hidden): the state at the last token predicts the next one, "yes" or "no".
    out: Tensor = states[0, batch.last]
    return out


def answer_logits(model: Any, batch: PackedBatch) -> Tensor:
    """(number of leaves, vocabulary) logits of the answer token, from a causal LM or an engine around one."""
    out: Tensor = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        packed=batch,
        use_cache=False,
        logits_to_keep=batch.last,
    ).logits[0]
    return out


def rerank_tree(
    template: RerankTemplate,
    query: str,
    documents: Sequence[str],
    *,
    max_tokens: int,
    max_query_tokens: int | None = None,
    instruction: str | None = None,
) -> tuple[list[int], list[list[int]]]:
    """(prefix ids, leaves' ids) of one query and its documents, at most `max_tokens` along each path."""
    # prefix: system prompt, instruction and query; a leaf: one document and the end of the prompt. A leaf may take
    # what the prefix leaves of `max_tokens`.
    prefix = template.prefix(query, instruction, max_query_tokens)
    return prefix, template.leaves(documents, max_tokens - len(prefix))


def _check_contract(model_dir: Path, contract: Contract | None, template: RerankTemplate) -> None:
    """Refuse a reranker that was trained with another template: its scores would silently be almost random."""
    if contract is None or not contract.template:
        return
    text, ids = template.text("{query}", "{document}", "{instruction}"), list(template.yes_no)
    if contract.template != text or contract.yes_no != ids:
        raise UserError(
            f"{model_dir}/{CONTRACT_FILE}: the reranker was trained with another template or tokenizer than this "
            "version of qwen3emb uses, so its scores would be wrong; use the version that exported it, or train again"
        )


class Reranker:
    """A reranker in this process."""

    def __init__(
        self,
        model_dir: Path,
        *,
        dtype: str | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Raises:
            UserError: no weights, "yes" / "no" is not one token, or it was trained with another template.
        """
        self.contract = read_contract(model_dir)
        if self.contract and self.contract.kind != "reranker":
            raise UserError(f"{model_dir} holds an embedding model, not a reranker")
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_causal(model_dir, dtype or compute_dtype(model_dir, self.device)).to(self.device)
        self.template = RerankTemplate(load_tokenizer(model_dir))
        require_vocabulary(model_dir, self.model, self.template.tokenizer)
        yes, no = self.template.yes_no
        _check_contract(model_dir, self.contract, self.template)
        head = self.model.get_output_embeddings().weight
        # P(yes) / (P(yes) + P(no)) = sigmoid(logit_yes - logit_no) = sigmoid(state . (w_yes - w_no)): one (hidden,)
        # vector stands for the head of (vocabulary, hidden), and the other logits are never computed.
        self.direction = (head[yes].float() - head[no].float()).detach()

    @property
    def context(self) -> int:
        """The model's longest input, tokens."""
        return int(self.model.config.max_position_embeddings)

    def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_tokens: int,
        instruction: str | None = None,
        max_query_tokens: int | None = None,
        token_budget: int = TOKEN_BUDGET,
        logits: bool = False,
    ) -> np.ndarray:
        """P(yes) / (P(yes) + P(no)) for each document, float32 (len(documents),).

        Args:
            query: the query.
            documents: what to judge; over-long ones lose their end, never the suffix.
            max_tokens: longest whole input.
            instruction: the task; default the template's.
            max_query_tokens: longer queries lose their end.
            token_budget: tokens per forward pass.
            logits: return the logit of that instead, which keeps the order where the probability is rounded to 0 or 1.

        Raises:
            UserError: `max_tokens` exceeds the model's context or leaves no room for a document.
        """
        if max_tokens > self.context:
            raise UserError(f"max_tokens {max_tokens} is more than the model's context of {self.context} tokens")
        instruction = instruction or (self.contract.instruction if self.contract else None)
        prefix, leaves = rerank_tree(
            self.template,
            query,
            documents,
            max_tokens=max_tokens,
            max_query_tokens=max_query_tokens,
            instruction=instruction,
        )
        out = np.empty(len(leaves), dtype=np.float32)
        with torch.inference_mode():
            for group in budgeted([len(leaf) for leaf in leaves], token_budget):
                batch = pack([(prefix, [leaves[i] for i in group])]).to(self.device)
                # (leaves, hidden) @ (hidden,) -> (leaves,)
                margin = answer_states(self.model, batch).float() @ self.direction
                out[group] = (margin if logits else torch.sigmoid(margin)).cpu().numpy()
        return out
