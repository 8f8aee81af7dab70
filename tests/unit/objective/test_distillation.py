"""A teacher's order of documents: the loss against loops, its gradients against autograd of a dense formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.config.training import LossConfig
from qwen3emb.objective.distillation import DocumentScores, Teacher, VectorScores, document_scores, teacher_loss
from qwen3emb.objective.losses import ContrastiveBatch, contrastive_gradients, contrastive_rows, prefixes
from qwen3emb.objective.rows import TrainingRow
from tests.unit.objective.test_losses import draw_batch
from tests.unit.objective.whole_batch import contrastive_loss


def drawn_teacher(data: st.DataObject, batch: ContrastiveBatch, weight: float) -> Teacher:
    """A reranker that has scored some of the rows' own documents, or an embedding model of another width."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    rows, negatives = len(batch.queries), len(batch.negatives)
    if data.draw(st.booleans()):
        wide = [torch.randn(n, 11, generator=generator) for n in (rows, rows + negatives)]
        return VectorScores(weight, 0.2, *(torch.nn.functional.normalize(t, dim=-1) for t in wide))
    scores = 3 * torch.randn(rows + negatives, generator=generator)
    unscored = data.draw(st.sets(st.integers(rows, rows + negatives), max_size=4)) - {rows + negatives}
    scores[sorted(unscored)] = -torch.inf
    return DocumentScores(weight, scores, torch.cat([torch.arange(rows), batch.owner]))


def literal_targets(teacher: Teacher, row: int, owners: list[int]) -> dict[int, float]:
    """Document -> the teacher's score for this row, where it has one."""
    if isinstance(teacher, VectorScores):
        return {j: float(teacher.queries[row] @ teacher.documents[j]) / 0.2 for j in range(len(owners))}
    assert isinstance(teacher, DocumentScores)
    return {j: float(teacher.scores[j]) for j, owner in enumerate(owners) if owner == row and teacher.scores[j] > -1e9}


def softmax(scores: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(score) for score in scores.values())
    return {j: math.exp(score) / total for j, score in scores.items()}


def literal(batch: ContrastiveBatch, teacher: Teacher, cfg: LossConfig, explicit: bool) -> float:
    """Row by row and document by document: (1 - w) x equation 1 of the row alone + w x KL."""
    rows = len(batch.queries)
    documents = torch.cat([batch.positives, batch.negatives])
    owners = [*range(rows), *batch.owner.tolist()]
    total = 0.0
    for row in range(rows):
        wanted = softmax(literal_targets(teacher, row, owners))
        found = softmax({j: float(batch.queries[row] @ documents[j]) / cfg.temperature for j in wanted})
        divergence = sum(p * math.log(p / found[j]) for j, p in wanted.items() if p > 0)
        weight = teacher.weight if len(wanted) > 1 else 0.0
        contrast = float(contrastive_rows(batch, slice(row, row + 1), cfg, explicit)[0])  # has a double loop of its own
        total += (1 - weight) * contrast + weight * divergence
    return total / rows


def dense(batch: ContrastiveBatch, teacher: Teacher, cfg: LossConfig, explicit: bool) -> torch.Tensor:
    """The same with a graph, on the whole batch and each MRL prefix."""
    rows, total = len(batch.queries), torch.zeros(())
    owners = [*range(rows), *batch.owner.tolist()]
    for width, prefix_weight in prefixes(cfg, batch.queries.shape[1]):
        cut = batch.prefix(width)
        cosines = cut.queries @ torch.cat([cut.positives, cut.negatives]).T
        for row in range(rows):
            scores = literal_targets(teacher, row, owners)
            places, values = list(scores), torch.tensor(list(scores.values()))
            target = torch.softmax(values, dim=0)
            student = torch.softmax(cosines[row, places] / cfg.temperature, dim=0)
            divergence = torch.nn.functional.kl_div(student.log(), target, reduction="sum")
            weight = teacher.weight if len(places) > 1 else 0.0
            contrast = contrastive_rows(cut, slice(row, row + 1), cfg, explicit)[0]
            total = total + prefix_weight * ((1 - weight) * contrast + weight * divergence) / rows
    return total


CONFIG = LossConfig(temperature=0.2, mrl_dims=[3, 9], mrl_weights=[0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_loss_is_that_of_a_loop_over_rows_and_documents(data: st.DataObject) -> None:
    batch = draw_batch(data, most_rows=5).prefix(None)
    teacher = drawn_teacher(data, batch, data.draw(st.sampled_from([0.3, 1.0])))
    cfg, explicit = LossConfig(temperature=0.2), data.draw(st.booleans())
    loss, _, metrics = contrastive_gradients(batch, cfg, explicit_only=explicit, teacher=teacher)
    assert loss == pytest.approx(literal(batch, teacher, cfg, explicit), rel=1e-4, abs=1e-5)
    owners = [*range(len(batch.queries)), *batch.owner.tolist()]
    taught = [row for row in range(len(batch.queries)) if len(literal_targets(teacher, row, owners)) > 1]
    assert ("teacher" in metrics) == bool(taught)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_and_prefixes_give_the_gradients_of_the_dense_formula(data: st.DataObject) -> None:
    drawn = draw_batch(data, most_rows=6)
    teacher = drawn_teacher(data, drawn, data.draw(st.sampled_from([0.3, 1.0])))
    explicit, tile = data.draw(st.booleans()), data.draw(st.integers(1, 7))
    leaves = [t.float().requires_grad_() for t in (drawn.queries, drawn.positives, drawn.negatives)]
    batch = ContrastiveBatch(*leaves, drawn.owner, drawn.query_ids, drawn.positive_ids, drawn.negative_ids)
    expected = dense(batch, teacher, CONFIG, explicit)
    expected.backward()
    loss, gradients, _ = contrastive_gradients(batch, CONFIG, explicit_only=explicit, tile=tile, teacher=teacher)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_teacher_of_weight_zero_changes_no_bit(data: st.DataObject) -> None:
    batch = draw_batch(data, most_rows=6).prefix(None)
    teacher = drawn_teacher(data, batch, 0.0)
    loss, gradients, metrics = contrastive_gradients(batch, CONFIG, tile=2)
    taught_loss, taught_gradients, taught_metrics = contrastive_gradients(batch, CONFIG, tile=2, teacher=teacher)
    assert taught_loss == loss
    assert {name: value for name, value in taught_metrics.items() if name != "teacher"} == metrics
    assert all(torch.equal(a, b) for a, b in zip(gradients, taught_gradients, strict=True))


def test_weight_one_and_the_teachers_own_cosines_leave_nothing_to_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p, n = (torch.nn.functional.normalize(torch.randn(k, 6, generator=generator), dim=-1) for k in (4, 4, 3))
    batch = ContrastiveBatch(q, p, n, torch.tensor([0, 0, 2]), *(torch.arange(k) for k in (4, 4, 3)))
    teacher = VectorScores(1.0, 0.05, q, torch.cat([p, n]))
    loss, gradients, metrics = contrastive_gradients(batch, LossConfig(), teacher=teacher)
    assert loss == pytest.approx(0, abs=1e-6) and metrics["teacher"] == pytest.approx(0, abs=1e-6)
    assert max(float(g.abs().max()) for g in gradients) < 1e-5
    assert float(contrastive_loss(batch, LossConfig())[0]) > 0.1


def test_a_rerankers_logits_come_in_the_order_of_the_batch() -> None:
    rows = [
        TrainingRow("a", "q", "p", ("n1", "n2", "n3", "n4"), teacher=(2.0, 0.5, -30.0)),
        TrainingRow("b", "q2", "p2", ("n5",)),  # nothing is scored
        TrainingRow("c", "q3", "p3", (), teacher=(40.0,)),
    ]
    found = document_scores(rows, 3, 0.5, 2.0, torch.device("cpu"))
    assert found.owner.tolist() == [0, 1, 2, 0, 0, 0, 1]
    assert found.scores.tolist() == [1.0, 0.0, 20.0, 0.25, -15.0, -math.inf, -math.inf]
    targets = found.targets(torch.tensor([1, 2]))
    assert torch.isfinite(targets).tolist() == [[j == 1 for j in range(7)], [j == 2 for j in range(7)]]
    _, taught = teacher_loss(found.targets(torch.arange(3)), torch.zeros(3, 7), 0.05)
    assert taught.tolist() == [True, False, False]
