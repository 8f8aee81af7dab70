"""One embedding step: rows -> packed forward -> global contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qwen3emb.config_train import TrainEmbeddingConfig
from qwen3emb.model.encoder import pooled
from qwen3emb.model.packing import pack
from qwen3emb.templates import EmbeddingTemplate
from qwen3emb.train.gather import gather_rows, rank_and_world
from qwen3emb.train.losses import ContrastiveBatch, matryoshka_loss
from qwen3emb.train.rows import TrainingRow, content_id

__all__ = ["embedding_loss"]


def embedding_loss(
    trunk: Any,
    template: EmbeddingTemplate,
    rows: Sequence[TrainingRow],
    cfg: TrainEmbeddingConfig,
    instruction: str,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the global batch, computed from this rank's slice `rows` of it.

    Args:
        trunk: decoder (or DeepSpeed engine around it) with packed attention.
        template: query and document formats.
        rows: this rank's rows; counts may differ between ranks.
        cfg: lengths and loss.
        instruction: of the queries.

    Returns:
        (scalar loss, metrics of the loss and "tokens": tokens this rank computed).
    """
    negatives = [(n, i) for i, row in enumerate(rows) for n in row.negatives[: cfg.hard_negatives]]
    documents = [row.positive for row in rows] + [text for text, _ in negatives]
    prefix, queries = template.encode([row.query for row in rows], cfg.max_query_tokens, instruction)
    _, leaves = template.encode(documents, cfg.max_document_tokens)
    batch = pack([(prefix, queries), ([], leaves)]).to(_device(trunk))
    vectors = pooled(trunk, batch)
    count = len(rows)
    first = _first_row(count, vectors.device)
    gathered = ContrastiveBatch(
        queries=gather_rows(vectors[:count]),
        positives=gather_rows(vectors[count : 2 * count]),
        negatives=gather_rows(vectors[2 * count :]),
        owner=gather_rows(_ids([first + i for _, i in negatives], vectors.device)),
        query_ids=gather_rows(_ids([content_id(r.query) for r in rows], vectors.device)),
        positive_ids=gather_rows(_ids([content_id(r.positive) for r in rows], vectors.device)),
        negative_ids=gather_rows(_ids([content_id(text) for text, _ in negatives], vectors.device)),
    )
    loss, metrics = matryoshka_loss(gathered, cfg.loss)
    return loss, metrics | {"tokens": float(batch.tokens)}


def _ids(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)


def _first_row(count: int, device: torch.device) -> int:
    """Number of rows on the ranks before this one."""
    rank, _ = rank_and_world()
    counts = gather_rows(_ids([count], device))
    return int(counts[:rank].sum())


def _device(trunk: Any) -> torch.device:
    device: torch.device = next(trunk.parameters()).device
    return device
