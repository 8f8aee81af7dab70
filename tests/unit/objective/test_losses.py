"""The losses against literal double-loop transcriptions of the paper's equation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.config.training import LossConfig
from qwen3emb.objective.losses import (
    ContrastiveBatch,
    contrastive_gradients,
    cosent_loss,
)
from qwen3emb.objective.reranker_step import answer_loss, distillation_loss, group_loss
from tests.unit.objective.whole_batch import contrastive_loss, matryoshka_loss


def make_batch(seed: int, rows: int, owners: list[int], kinds: int, width: int = 6) -> ContrastiveBatch:
    """Random vectors; texts are drawn from `kinds` different ones, so that duplicates happen."""
    generator = torch.Generator().manual_seed(seed)
    document_vectors = torch.randn(kinds, width, generator=generator, dtype=torch.float64)
    query_vectors = document_vectors + 0.7 * torch.randn(kinds, width, generator=generator, dtype=torch.float64)

    def draw(count: int) -> torch.Tensor:
        return torch.randint(0, kinds, (count,), generator=generator)

    q, p, n = draw(rows), draw(rows), draw(len(owners))
    return ContrastiveBatch(
        torch.nn.functional.normalize(query_vectors[q], dim=-1),
        torch.nn.functional.normalize(document_vectors[p], dim=-1),
        torch.nn.functional.normalize(document_vectors[n], dim=-1),
        torch.tensor(owners, dtype=torch.long),
        q,
        p,
        n,
    )


def draw_batch(data: st.DataObject, most_rows: int) -> ContrastiveBatch:
    rows = data.draw(st.integers(1, most_rows))
    owners = data.draw(st.lists(st.integers(0, rows - 1), max_size=7))
    return make_batch(data.draw(st.integers(0, 10_000)), rows, owners, data.draw(st.integers(1, 9)))


def literal_loss(batch: ContrastiveBatch, cfg: LossConfig, explicit_only: bool = False) -> float:
    """RECIPE section 2, term by term, one pair at a time."""
    cosine = torch.dot
    rows, total = len(batch.queries), 0.0
    documents = [(batch.positives[j], int(batch.positive_ids[j]), j, False) for j in range(rows)]
    documents += [
        (batch.negatives[k], int(batch.negative_ids[k]), int(batch.owner[k]), True) for k in range(len(batch.negatives))
    ]
    for i in range(rows):
        query, positive = batch.queries[i], batch.positives[i]
        s_positive = float(cosine(query, positive).detach())
        answers = {
            int(batch.positive_ids[j]) for j in range(rows) if int(batch.query_ids[j]) == int(batch.query_ids[i])
        }
        z = math.exp(s_positive / cfg.temperature)
        for vector, identity, owner, hard in documents:
            if owner == i and not hard:
                continue
            if owner != i and (explicit_only or (hard and not cfg.in_batch_hard)):
                continue
            if cfg.mask_identical and identity in answers:
                continue
            s = float(cosine(query, vector))
            if s <= s_positive + cfg.margin:
                z += math.exp(s / cfg.temperature)
            if owner != i and cfg.document_document:
                z += math.exp(float(cosine(positive, vector)) / cfg.temperature)
        for j in range(rows):
            if j == i or explicit_only or not cfg.query_query:
                continue
            if cfg.mask_identical and int(batch.query_ids[i]) == int(batch.query_ids[j]):
                continue
            s = float(cosine(query, batch.queries[j]))
            if s <= s_positive + cfg.margin:
                z += math.exp(s / cfg.temperature)
        total -= math.log(math.exp(s_positive / cfg.temperature) / z)
    return total / rows


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_contrastive_loss_equals_the_literal_equation(data: st.DataObject) -> None:
    batch = draw_batch(data, most_rows=5)
    cfg = LossConfig(
        temperature=data.draw(st.sampled_from([0.05, 0.2])),
        margin=data.draw(st.sampled_from([0.1, -0.3, -3.0])),  # -3 masks everything
        query_query=data.draw(st.booleans()),
        document_document=data.draw(st.booleans()),
        in_batch_hard=data.draw(st.booleans()),
        mask_identical=data.draw(st.booleans()),
    )
    explicit = data.draw(st.booleans())
    loss, metrics = contrastive_loss(batch, cfg, explicit)
    assert float(loss) == pytest.approx(literal_loss(batch, cfg, explicit), rel=1e-9, abs=1e-9)
    assert 0 <= metrics["masked"] <= 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_give_the_loss_metrics_and_gradients_of_the_whole(data: st.DataObject) -> None:
    batch = draw_batch(data, most_rows=6)
    cfg = LossConfig(mrl_dims=[3, 9], mrl_weights=[0.5, 1.0], margin=data.draw(st.sampled_from([0.1, -0.3])))
    explicit = data.draw(st.booleans())
    leaves = [t.float().requires_grad_() for t in (batch.queries, batch.positives, batch.negatives)]
    whole = ContrastiveBatch(*leaves, batch.owner, batch.query_ids, batch.positive_ids, batch.negative_ids)
    expected, metrics = matryoshka_loss(whole, cfg, explicit)
    expected.backward()
    tile = data.draw(st.integers(1, 7))
    loss, gradients, found = contrastive_gradients(whole, cfg, explicit_only=explicit, tile=tile)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_the_threshold_of_the_mask_is_detached() -> None:
    batch = make_batch(3, 4, [0, 1, 1], 9)
    leaves = [t.clone().requires_grad_() for t in (batch.queries, batch.positives, batch.negatives)]
    moved = ContrastiveBatch(*leaves, batch.owner, batch.query_ids, batch.positive_ids, batch.negative_ids)
    contrastive_loss(moved, LossConfig())[0].backward()
    step = 1e-6
    for leaf in leaves:  # finite differences of the literal equation
        for index in [(0, 0), (len(leaf) - 1, 3)]:
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf[index] += sign * step
                values.append(literal_loss(moved, LossConfig()))
                with torch.no_grad():
                    leaf[index] -= sign * step
            assert float(leaf.grad[index]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-5)


def test_matryoshka_sums_weighted_prefixes_and_skips_what_is_not_shorter() -> None:
    batch = make_batch(1, 4, [2], 9)
    cfg = LossConfig(mrl_dims=[2, 6, 99], mrl_weights=[0.5, 3.0, 3.0])
    expected = contrastive_loss(batch.prefix(None), cfg)[0] + 0.5 * contrastive_loss(batch.prefix(2), cfg)[0]
    assert float(matryoshka_loss(batch, cfg)[0]) == pytest.approx(float(expected), rel=1e-6)


def test_cosent_equals_its_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=-1) for _ in range(2))
    grades = torch.tensor([0.0, 3.0, 3.0, 5.0, 1.0])
    s = [float(a @ b) for a, b in zip(first, second, strict=True)]
    total = 1.0
    for a in range(5):
        for b in range(5):
            if grades[a] > grades[b]:
                total += math.exp((s[b] - s[a]) / 0.1)
    assert float(cosent_loss(first, second, grades, 0.1)) == pytest.approx(math.log(total), rel=1e-5)


def test_answer_loss_is_the_negative_log_probability_of_the_label() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    expected = sum(
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in ((logits[0].tolist(), 1), (logits[1].tolist(), 0))
    )
    assert float(answer_loss(logits, torch.tensor([1, 0]), total=4)) == pytest.approx(expected / 4, rel=1e-6)


@given(st.lists(st.lists(st.floats(-20, 20), min_size=1, max_size=5), min_size=1, max_size=4), st.floats(-9, 9))
def test_group_loss_is_the_cross_entropy_of_each_querys_positive(groups: list[list[float]], shift: float) -> None:
    expected = sum(math.log(sum(math.exp(m - group[0]) for m in group)) for group in groups)
    sizes = [len(group) for group in groups]
    margins = torch.tensor([m for group in groups for m in group])
    assert float(group_loss(margins, sizes, total=7)) == pytest.approx(expected / 7, rel=1e-4, abs=1e-5)
    assert float(group_loss(margins + shift, sizes, total=7)) == pytest.approx(expected / 7, rel=1e-3, abs=1e-4)


@given(
    st.lists(st.tuples(st.floats(-8, 8), st.floats(0.001, 0.999)), min_size=1, max_size=6), st.sampled_from([0.5, 1, 4])
)
def test_distillation_is_the_cross_entropy_to_the_teacher(
    answers: list[tuple[float, float]], temperature: float
) -> None:
    expected = 0.0
    for margin, teacher in answers:
        t = 1 / (1 + math.exp(-math.log(teacher / (1 - teacher)) / temperature))
        p = 1 / (1 + math.exp(-margin / temperature))
        expected -= temperature**2 * (t * math.log(p) + (1 - t) * math.log(1 - p))
    margins, teachers = (torch.tensor(values) for values in zip(*answers, strict=True))
    found = distillation_loss(margins, teachers, temperature, total=7)
    assert float(found) == pytest.approx(expected / 7, rel=1e-3, abs=1e-6)
