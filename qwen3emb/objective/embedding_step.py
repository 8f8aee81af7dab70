"""One embedding step: rows -> packed micro-batches -> loss of the global batch -> gradients (RECIPE section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3emb.config.training import LossConfig
from qwen3emb.model.encoder import budgeted, pooled
from qwen3emb.model.packing import PackedBatch, pack
from qwen3emb.objective.contrast import contrastive_gradients, cosent_gradients
from qwen3emb.objective.gather import gather_rows, rank_and_world
from qwen3emb.objective.losses import ContrastiveBatch
from qwen3emb.objective.microbatch import StepEngine, cached_backward, wasted_share
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.objective.text_assignment import TextAssignment, assign_texts
from qwen3emb.text.identity import content_id
from qwen3emb.text.templates import EmbeddingTemplate

__all__ = ["StepSettings", "embedding_step", "micro_batches"]


@dataclass(frozen=True)
class StepSettings:
    """How the rows of one dataset are trained on.

    Attributes:
        instruction: of its queries.
        task: `retrieval` (and bitext), `classification` (only a row's own negatives count) or `sts` (graded pairs).
        hard_negatives: at most so many of each row.
        max_query_tokens, max_document_tokens: lengths with instruction and end token.
        loss: the loss.
        token_budget: tokens whose activations are kept; a rank with more uses the gradient cache.
        tile: rows of the score matrix at a time.
        pack_tokens: tokens of a micro-batch.
    """

    instruction: str
    task: str
    hard_negatives: int
    max_query_tokens: int
    max_document_tokens: int
    loss: LossConfig
    token_budget: int
    tile: int = 256
    pack_tokens: int = 4096


def embedding_step(
    engine: StepEngine, template: EmbeddingTemplate, rows: Sequence[TrainingRow], settings: StepSettings
) -> dict[str, float]:
    """Add the gradient of the loss of the global batch `rows` to the engine's parameters.

    Every rank calls this with the same rows and computes its share of the texts. The sum over the ranks is the
    gradient of one process holding the whole batch, whatever the world size and the token budget.

    Returns:
        "loss", `LossSums.metrics`, "tokens" of this rank's texts, "micro_batches" it took and its "padding" (see
        `wasted_share`); of a step with the gradient cache every token is computed twice and counted once.
    """
    rank, world = rank_and_world()
    plan = assign_texts(rows, settings.hard_negatives, symmetric=settings.task == "sts")
    shares = plan.shares(world)
    batches, order = micro_batches(plan, shares[rank], template, settings)
    found: dict[str, float] = {}

    def gradient_of(vectors: Tensor) -> Tensor:
        numbers = torch.tensor(order, dtype=torch.long, device=vectors.device)
        texts = _everyones(vectors[torch.argsort(numbers)], shares)
        loss, gradient, metrics = _loss(texts, plan, rows, settings)
        found.update(metrics, loss=loss)
        if not order:
            return torch.zeros_like(vectors)
        return gradient[numbers]

    rounds = cached_backward(
        engine, batches, lambda b: pooled(engine, b.to(engine.device)), gradient_of, settings.token_budget
    )
    tokens = sum(batch.tokens for batch in batches) if order else 0
    wasted = wasted_share(tokens, batches, rounds)
    return found | {"tokens": float(tokens), "micro_batches": float(len(batches)), "padding": wasted}


def micro_batches(
    plan: TextAssignment, texts: Sequence[int], template: EmbeddingTemplate, settings: StepSettings
) -> tuple[list[PackedBatch], list[int]]:
    """(packed batches, text number of each of their leaves); one token of padding where a rank has no text."""
    count = len(plan.queries)
    asked = [t for t in texts if t < count]
    read = [t for t in texts if t >= count]
    prefix, queries = template.encode(
        [plan.queries[t] for t in asked], settings.max_query_tokens, settings.instruction or None
    )
    _, documents = template.encode([plan.documents[t - count] for t in read], settings.max_document_tokens)
    leaves, numbers = [*queries, *documents], [*asked, *read]
    batches: list[PackedBatch] = []
    order: list[int] = []
    budget = min(settings.pack_tokens, settings.token_budget)
    for group in budgeted([len(leaf) for leaf in leaves], max(1, budget - len(prefix))):
        first = [i for i in group if i < len(asked)]
        second = [i for i in group if i >= len(asked)]
        trees = [(prefix, [leaves[i] for i in first])] if first else []
        batches.append(pack([*trees, ([], [leaves[i] for i in second])]))
        order.extend(numbers[i] for i in (*first, *second))
    return batches or [pack([([], [[template.end_id]])])], order


def _everyones(own: Tensor, shares: Sequence[Sequence[int]]) -> Tensor:
    """(texts, D) vectors of all ranks by text number, from this rank's in the order of its share."""
    gathered = gather_rows(own)
    numbers = torch.tensor([t for share in shares for t in share], device=own.device)
    texts = torch.empty_like(gathered)
    texts[numbers] = gathered
    return texts


def _loss(
    texts: Tensor, plan: TextAssignment, rows: Sequence[TrainingRow], settings: StepSettings
) -> tuple[float, Tensor, dict[str, float]]:
    """(loss, its gradient with respect to `texts`, metrics)."""

    def ids(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=texts.device)

    where = [ids(plan.query_of), ids(plan.positive_of), ids(plan.negative_of)]
    hashes = [content_id(text) for text in (*plan.queries, *plan.documents)]
    queries, positives, negatives = (texts[numbers] for numbers in where)
    batch = ContrastiveBatch(
        queries,
        positives,
        negatives,
        owner=ids(plan.owner),
        query_ids=ids([hashes[t] for t in plan.query_of]),
        positive_ids=ids([hashes[t] for t in plan.positive_of]),
        negative_ids=ids([hashes[t] for t in plan.negative_of]),
    )
    if settings.task == "sts":
        grades = torch.tensor([row.grade for row in rows], dtype=torch.float32, device=texts.device)
        loss, gradients, metrics = cosent_gradients(batch, grades, settings.loss)
    else:
        explicit = settings.task == "classification"
        loss, gradients, metrics = contrastive_gradients(
            batch, settings.loss, explicit_only=explicit, tile=settings.tile
        )
    out = torch.zeros_like(texts, dtype=torch.float32)
    for numbers, gradient in zip(where, gradients, strict=True):
        out.index_add_(0, numbers, gradient)
    return loss, out, metrics
