"""One embedding step: rows -> packed micro-batches -> loss of the global batch -> gradients (RECIPE section 2).

Which rank computes which text is a pure function of the rows and the world size, so that ranks need not communicate
about it. The batch may be split in any way, since vectors are gathered before the loss: each text is computed once,
however often it occurs in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3emb.config.training import LossConfig
from qwen3emb.model.packing import PackedBatch, budgeted, pack, pooled
from qwen3emb.objective.distillation import Teacher
from qwen3emb.objective.losses import ContrastiveBatch, contrastive_gradients, cosent_gradients
from qwen3emb.objective.microbatch import StepEngine, cached_backward, wasted_share
from qwen3emb.objective.ranks import balance, gather_rows, rank_and_world
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.identity import content_id
from qwen3emb.text.templates import EmbeddingTemplate, TextLimits

__all__ = ["StepSettings", "TextAssignment", "assign_texts", "embedding_step", "micro_batches"]


@dataclass(frozen=True)
class StepSettings:
    """How the rows of one dataset are trained on.

    Attributes:
        instruction: of the dataset's queries.
        task: `retrieval` (and bitext), `classification` (only a row's own negatives count) or `sts` (graded pairs).
        hard_negatives: number of hard negatives used of each row, at most.
        limits: tokens of queries and of documents.
        loss: temperature, masks and MRL dimensions.
        token_budget: tokens whose activations a rank may keep; where one has more, the gradient cache is used.
        tile: rows of the score matrix at a time.
        pack_tokens: tokens of a micro-batch.
    """

    instruction: str
    task: str
    hard_negatives: int
    limits: TextLimits
    loss: LossConfig
    token_budget: int
    tile: int = 256
    pack_tokens: int = 4096


def embedding_step(
    engine: StepEngine,
    template: EmbeddingTemplate,
    rows: Sequence[TrainingRow],
    settings: StepSettings,
    teacher: Teacher | None = None,
) -> dict[str, float]:
    """Add the gradient of the loss of the global batch `rows` to the engine's parameters.

    Every rank calls this with the same rows and computes its share of the texts. The sum over the ranks is the
    gradient of one process holding the whole batch, whatever the world size and the token budget.

    Args:
        engine: the embedding model.
        template: its input format.
        rows: the global batch, of one dataset.
        settings: of that dataset.
        teacher: whose order of the documents is learnt beside the labels; graded pairs (sts) have none.

    Returns:
        "loss", `LossSums.metrics`, "tokens" of this rank's texts, its number of "micro_batches" and its "padding" (see
        `wasted_share`). With the gradient cache every token is computed twice and counted once.
    """
    rank, world = rank_and_world()
    # 1. Which distinct texts there are and which rank computes which: every rank comes to the same answer by itself.
    assignment = assign_texts(rows, settings.hard_negatives, symmetric=settings.task == "sts")
    shares = assignment.shares(world)
    # 2. This rank's texts as packed batches; `order` says which text each computed vector belongs to.
    batches, order = micro_batches(assignment, shares[rank], template, settings)
    step_metrics: dict[str, float] = {}

    def gradient_of(vectors: Tensor) -> Tensor:
        # 4. vectors: (this rank's texts, D) in the order of the batches. Sorted by text number and gathered from all
        # ranks: (texts, D), the same on every rank. Then the loss of the whole global batch, and the rows of its
        # gradient that are this rank's, in the order of the batches again.
        numbers = torch.tensor(order, dtype=torch.long, device=vectors.device)
        texts = _everyones(vectors[torch.argsort(numbers)], shares)
        loss, gradient, metrics = _loss(texts, assignment, rows, settings, teacher)
        step_metrics.update(metrics, loss=loss)
        if not order:
            return torch.zeros_like(vectors)
        return gradient[numbers]

    # 3. Forward, the gradient above, backward; with the gradient cache where activations do not fit.
    rounds = cached_backward(
        engine, batches, lambda b: pooled(engine, b.to(engine.device)), gradient_of, settings.token_budget
    )
    tokens = sum(batch.tokens for batch in batches) if order else 0
    wasted = wasted_share(tokens, batches, rounds)
    return step_metrics | {"tokens": float(tokens), "micro_batches": float(len(batches)), "padding": wasted}


def micro_batches(
    assignment: TextAssignment, texts: Sequence[int], template: EmbeddingTemplate, settings: StepSettings
) -> tuple[list[PackedBatch], list[int]]:
    """(packed batches, text number of each of their leaves); a batch of one padding token where a rank has no text."""
    count = len(assignment.queries)
    query_texts = [t for t in texts if t < count]
    document_texts = [t for t in texts if t >= count]
    # Queries share the instruction as a prefix, documents have none, so a batch is one tree and plain sequences.
    prefix, queries = template.queries(
        [assignment.queries[t] for t in query_texts], settings.limits, settings.instruction
    )
    documents = template.documents([assignment.documents[t - count] for t in document_texts], settings.limits)
    leaves, numbers = [*queries, *documents], [*query_texts, *document_texts]
    batches: list[PackedBatch] = []
    order: list[int] = []
    budget = min(settings.pack_tokens, settings.token_budget)
    for group in budgeted([len(leaf) for leaf in leaves], max(1, budget - len(prefix))):
        # Leaves are packed tree by tree, so the order of the vectors is queries, then documents of the group.
        first = [i for i in group if i < len(query_texts)]
        second = [i for i in group if i >= len(query_texts)]
        trees = [(prefix, [leaves[i] for i in first])] if first else []
        batches.append(pack([*trees, ([], [leaves[i] for i in second])]))
        order.extend(numbers[i] for i in (*first, *second))
    return batches or [pack([([], [[template.end_id]])])], order


def _everyones(local: Tensor, shares: Sequence[Sequence[int]]) -> Tensor:
    """(texts, D) vectors of all ranks by text number, from this rank's in the order of its share."""
    gathered = gather_rows(local)
    numbers = torch.tensor([t for share in shares for t in share], device=local.device)
    texts = torch.empty_like(gathered)
    # Gathered rows come rank by rank, each rank's in the order of its share; they are sorted by text number.
    texts[numbers] = gathered
    return texts


def _loss(
    texts: Tensor,
    assignment: TextAssignment,
    rows: Sequence[TrainingRow],
    settings: StepSettings,
    teacher: Teacher | None,
) -> tuple[float, Tensor, dict[str, float]]:
    """(loss, its gradient with respect to `texts`, metrics)."""

    def ids(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=texts.device)

    where = [ids(assignment.query_of), ids(assignment.positive_of), ids(assignment.negative_of)]
    # Content ids, not row numbers: the same text in two rows is one text, and is never its own negative.
    hashes = [content_id(text) for text in (*assignment.queries, *assignment.documents)]
    queries, positives, negatives = (texts[numbers] for numbers in where)
    batch = ContrastiveBatch(
        queries,
        positives,
        negatives,
        owner=ids(assignment.owner),
        query_ids=ids([hashes[t] for t in assignment.query_of]),
        positive_ids=ids([hashes[t] for t in assignment.positive_of]),
        negative_ids=ids([hashes[t] for t in assignment.negative_of]),
    )
    if settings.task == "sts":
        grades = torch.tensor([row.grade for row in rows], dtype=torch.float32, device=texts.device)
        loss, gradients, metrics = cosent_gradients(batch, grades, settings.loss)
    else:
        explicit = settings.task == "classification"
        loss, gradients, metrics = contrastive_gradients(
            batch, settings.loss, explicit_only=explicit, tile=settings.tile, teacher=teacher
        )
    # A text that is positive of one row and negative of another gets the sum of both gradients: index_add_, since
    # plain assignment would keep the last one only.
    out = torch.zeros_like(texts, dtype=torch.float32)
    for numbers, gradient in zip(where, gradients, strict=True):
        out.index_add_(0, numbers, gradient)
    return loss, out, metrics


@dataclass(frozen=True)
class TextAssignment:
    """The distinct texts of a global batch. Queries count first: text t is a query where t < len(queries).

    Attributes:
        queries, documents: distinct texts.
        query_of, positive_of: (rows,) text numbers.
        owner, negative_of: (hard negatives,) row and text numbers.
    """

    queries: list[str]
    documents: list[str]
    query_of: list[int]
    positive_of: list[int]
    owner: list[int]
    negative_of: list[int]

    def shares(self, world: int) -> list[list[int]]:
        """For each rank the texts it computes, ascending."""
        return balance([len(text) for text in (*self.queries, *self.documents)], world)


def assign_texts(rows: Sequence[TrainingRow], hard_negatives: int, symmetric: bool = False) -> TextAssignment:
    """List the texts of `rows` once each.

    Args:
        rows: the global batch.
        hard_negatives: take at most so many of each row, the hardest.
        symmetric: both sides of a pair are encoded alike, as queries (STS).
    """
    queries: dict[str, int] = {}
    documents: dict[str, int] = {}
    second = queries if symmetric else documents
    for row in rows:
        queries.setdefault(row.query, len(queries))
        for text in (row.positive, *row.negatives[:hard_negatives]):
            second.setdefault(text, len(second))
    # Documents are numbered behind the queries; where both sides are queries there is one numbering.
    shift = 0 if symmetric else len(queries)
    pairs = [(i, text) for i, row in enumerate(rows) for text in row.negatives[:hard_negatives]]
    return TextAssignment(
        list(queries),
        list(documents),
        [queries[row.query] for row in rows],
        [shift + second[row.positive] for row in rows],
        [i for i, _ in pairs],
        [shift + second[text] for _, text in pairs],
    )
