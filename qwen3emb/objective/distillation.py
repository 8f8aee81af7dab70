"""A teacher's order of documents, learnt by the embedding model beside the labels.

A row's loss is KL(softmax(teacher's scores / T) || softmax(cosines / tau)) over the documents that the teacher has
scored. It compares orders and not vectors, so the teacher may be a reranker, or an embedding model of any width
(tightly coupled teachers, arXiv 2010.11386: a teacher's softmax over the documents of the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qwen3emb.objective.rows import TrainingRow

__all__ = ["DocumentScores", "Teacher", "VectorScores", "document_scores", "teacher_loss"]


class Teacher(Protocol):
    """A teacher's scores of the documents of a global batch: N positives, then M hard negatives."""

    @property
    def weight(self) -> float:
        """Share of the distillation in the loss of a row that has something to learn."""
        ...

    def targets(self, rows: Tensor) -> Tensor:
        """(n, N + M) scores / T of the rows with these (n,) numbers; -inf where the teacher has scored nothing.

        The same on every rank.
        """
        ...


@dataclass(frozen=True)
class DocumentScores:
    """Scores of each document for the row it belongs to: a reranker's.

    Attributes:
        weight: as of `Teacher`.
        scores: (N + M,) scores / T; -inf for documents without one.
        owner: (N + M,) row of each document.
    """

    weight: float
    scores: Tensor
    owner: Tensor

    def targets(self, rows: Tensor) -> Tensor:
        """Scores of a row's own documents; -inf for all others."""
        return torch.where(self.owner[None] == rows[:, None], self.scores[None], -torch.inf)


@dataclass(frozen=True)
class VectorScores:
    """Cosines of every query with every document: an embedding model's.

    Attributes:
        weight: as of `Teacher`.
        temperature: T.
        queries, documents: (N, D'), (N + M, D') unit vectors.
    """

    weight: float
    temperature: float
    queries: Tensor
    documents: Tensor

    def targets(self, rows: Tensor) -> Tensor:
        """Cosines of some queries with all documents of the batch, divided by the temperature."""
        return self.queries[rows] @ self.documents.T / self.temperature


def document_scores(
    rows: Sequence[TrainingRow], hard_negatives: int, weight: float, temperature: float, device: torch.device
) -> DocumentScores:
    """The teacher's logits of the documents of `rows`, from `TrainingRow.teacher`.

    Args:
        rows: the global batch.
        hard_negatives: of each row in the batch, at most; a negative beyond the teacher's scores has none.
        weight: share of the distillation.
        temperature: T.
        device: of the result.
    """
    # A row without scores has one document with a score, its positive, and so nothing to order.
    logits = [row.teacher[0] if row.teacher else 0.0 for row in rows]
    owner = list(range(len(rows)))
    for number, row in enumerate(rows):
        scored = row.teacher[1:]
        for place in range(len(row.negatives[:hard_negatives])):
            logits.append(scored[place] if place < len(scored) else -torch.inf)
            owner.append(number)
    scores = torch.tensor(logits, dtype=torch.float32, device=device) / temperature
    return DocumentScores(weight, scores, torch.tensor(owner, dtype=torch.long, device=device))


def teacher_loss(targets: Tensor, cosines: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL of the student's softmax from the teacher's, for each row.

    Args:
        targets: (n, documents) the teacher's scores / T, at least one in a row; -inf where it has none.
        cosines: (n, documents) the student's.
        temperature: tau.

    Returns:
        ((n,) divergences; (n,) booleans: the teacher has scored at least two documents, whose order can be learnt).
    """
    scored = torch.isfinite(targets)
    # Zero where nothing is scored: -inf times a probability of 0 would be NaN.
    student = torch.log_softmax((cosines / temperature).masked_fill(~scored, -torch.inf), dim=1)
    teacher = torch.log_softmax(targets.to(cosines.dtype), dim=1)
    difference = teacher.masked_fill(~scored, 0.0) - student.masked_fill(~scored, 0.0)
    return (teacher.exp() * difference).sum(dim=1), scored.sum(dim=1) > 1
