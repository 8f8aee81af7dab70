"""One reranker step: one tree per query, logits only at the answer position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qwen3emb.config_train import TrainRerankerConfig
from qwen3emb.model.packing import pack
from qwen3emb.model.reranker import rerank_tree
from qwen3emb.templates import RerankTemplate
from qwen3emb.train.gather import gather_rows
from qwen3emb.train.losses import answer_loss
from qwen3emb.train.rows import TrainingRow

__all__ = ["reranker_loss"]


def reranker_loss(
    model: Any,
    template: RerankTemplate,
    rows: Sequence[TrainingRow],
    cfg: TrainRerankerConfig,
    instruction: str,
) -> tuple[Tensor, dict[str, float]]:
    """This rank's part of the SFT loss of the global batch (paper section 2); the sum over ranks is the loss.

    Args:
        model: causal LM (or DeepSpeed engine around it) with packed attention.
        template: the reranker's format.
        rows: this rank's queries, each with its positive and hard negatives.
        cfg: lengths and number of negatives.
        instruction: the task.

    Returns:
        (scalar loss, {"tokens": ..., "positive": mean P(yes) of positives, "hardest": of the best negatives}).
    """
    yes, no = template.yes_no
    trees = [
        rerank_tree(
            template,
            row.query,
            [row.positive, *row.negatives[: cfg.negatives]],
            max_tokens=cfg.max_tokens,
            max_query_tokens=cfg.max_query_tokens,
            instruction=instruction,
        )
        for row in rows
    ]
    sizes = [len(leaves) for _, leaves in trees]
    module = getattr(model, "module", model)
    device = next(module.parameters()).device
    batch = pack(trees).to(device)
    labels = torch.tensor([t for n in sizes for t in (yes, *[no] * (n - 1))], device=device)
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        packed=batch,
        use_cache=False,
        logits_to_keep=batch.last,
    ).logits[0]  # (answers, vocabulary)
    total = int(gather_rows(torch.tensor([len(labels)], device=device)).sum())
    loss = answer_loss(logits, labels, total)
    chance = torch.split(torch.sigmoid((logits[:, yes] - logits[:, no]).detach().float()), sizes)
    hardest = [float(c[1:].max()) for c in chance if len(c) > 1]
    return loss, {
        "tokens": float(batch.tokens),
        "positive": sum(float(c[0]) for c in chance) / len(chance),
        "hardest": sum(hardest) / max(1, len(hardest)),
    }
