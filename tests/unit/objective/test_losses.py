"""The losses against literal double-loop transcriptions of the paper's equation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.config.training import LossConfig
from qwen3emb.objective.additions import log_hardness, mean_squares
from qwen3emb.objective.losses import (
    ContrastiveBatch,
    contrastive_gradients,
    contrastive_rows,
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


def literal_loss(batch: ContrastiveBatch, cfg: LossConfig, explicit_only: bool = False) -> torch.Tensor:
    """RECIPE section 2, term by term, one pair at a time, for vectors of length 1; with a graph if they have one."""
    rows = len(batch.queries)
    losses = [_literal_row(batch, i, cfg, explicit_only) for i in range(rows)]
    return torch.stack(losses).mean()


def _literal_row(batch: ContrastiveBatch, i: int, cfg: LossConfig, explicit_only: bool) -> torch.Tensor:
    cosine = torch.dot
    rows = len(batch.queries)
    documents = [(batch.positives[j], int(batch.positive_ids[j]), j, False) for j in range(rows)]
    documents += [
        (batch.negatives[k], int(batch.negative_ids[k]), int(batch.owner[k]), True) for k in range(len(batch.negatives))
    ]
    query, positive = batch.queries[i], batch.positives[i]
    s_positive = cosine(query, positive)
    limit = float(s_positive.detach()) + cfg.margin
    answers = {int(batch.positive_ids[j]) for j in range(rows) if int(batch.query_ids[j]) == int(batch.query_ids[i])}
    terms, like_queries, like_positives = [], [], []  # cosines of Z's negatives; of what is to be spread out
    for vector, identity, owner, hard in documents:
        if owner == i and not hard:
            continue
        if cfg.mask_identical and identity in answers:
            continue
        s, to_positive = cosine(query, vector), cosine(positive, vector)
        if not hard:
            like_positives.append(to_positive)
        if owner != i and (explicit_only or (hard and not cfg.in_batch_hard)):
            continue
        if float(s.detach()) <= limit:
            terms.append(s)
        if owner != i and cfg.document_document:
            terms.append(to_positive)
    for j in range(rows):
        if j == i or (cfg.mask_identical and int(batch.query_ids[i]) == int(batch.query_ids[j])):
            continue
        s = cosine(query, batch.queries[j])
        like_queries.append(s)
        if cfg.query_query and not explicit_only and float(s.detach()) <= limit:
            terms.append(s)
    weights = [
        math.exp(cfg.hardness * float(s.detach())) for s in terms
    ]  # plain numbers: no gradient goes through them
    z = (s_positive / cfg.temperature).exp()
    for s, weight in zip(terms, weights, strict=True):
        z = z + weight * len(weights) / sum(weights) * (s / cfg.temperature).exp()
    loss = -((s_positive / cfg.temperature).exp() / z).log()
    for cosines in (like_queries, like_positives):
        if cosines and not explicit_only:
            loss = loss + cfg.spread_out * torch.stack([s * s for s in cosines]).mean()
    return loss


def draw_config(data: st.DataObject, **settings: object) -> LossConfig:
    return LossConfig(
        temperature=data.draw(st.sampled_from([0.05, 0.2])),
        margin=data.draw(st.sampled_from([0.1, -0.3, -3.0])),  # -3 masks everything
        query_query=data.draw(st.booleans()),
        document_document=data.draw(st.booleans()),
        in_batch_hard=data.draw(st.booleans()),
        mask_identical=data.draw(st.booleans()),
        hardness=data.draw(st.sampled_from([0.0, 1.0, 9.0])),
        spread_out=data.draw(st.sampled_from([0.0, 0.5])),
        **settings,
    )


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_contrastive_loss_equals_the_literal_equation(data: st.DataObject) -> None:
    batch, cfg = draw_batch(data, most_rows=5), draw_config(data)
    explicit = data.draw(st.booleans())
    loss, metrics = contrastive_loss(batch, cfg, explicit)
    assert float(loss) == pytest.approx(float(literal_loss(batch, cfg, explicit)), rel=1e-9, abs=1e-9)
    assert 0 <= metrics["masked"] <= 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_and_prefixes_give_the_value_and_gradients_of_the_literal_equation(data: st.DataObject) -> None:
    batch = draw_batch(data, most_rows=6)
    cfg = draw_config(data, mrl_dims=[3, 9], mrl_weights=[0.5, 1.0])
    explicit = data.draw(st.booleans())
    whole = with_leaves(batch)
    expected = literal_loss(unit(whole), cfg, explicit) + 0.5 * literal_loss(unit(whole, 3), cfg, explicit)
    expected.backward()
    tile = data.draw(st.integers(1, 7))
    loss, gradients, found = contrastive_gradients(batch, cfg, explicit_only=explicit, tile=tile)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    assert found == pytest.approx(matryoshka_loss(batch, cfg, explicit)[1], rel=1e-5, abs=1e-6)
    leaves = (whole.queries, whole.positives, whole.negatives)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(gradient.double(), wanted, atol=2e-5, rtol=1e-3)


def with_leaves(batch: ContrastiveBatch) -> ContrastiveBatch:
    queries, positives, negatives = (
        t.clone().requires_grad_() for t in (batch.queries, batch.positives, batch.negatives)
    )
    return replace(batch, queries=queries, positives=positives, negatives=negatives)


def unit(batch: ContrastiveBatch, width: int | None = None) -> ContrastiveBatch:
    """`ContrastiveBatch.prefix` in the batch's own precision."""
    queries, positives, negatives = (
        torch.nn.functional.normalize(t[:, :width], dim=-1) for t in (batch.queries, batch.positives, batch.negatives)
    )
    return replace(batch, queries=queries, positives=positives, negatives=negatives)


def test_without_hardness_and_spread_out_the_loss_is_bit_for_bit_that_of_the_paper() -> None:
    batch, tau = unit(make_batch(7, 6, [0, 0, 1, 3, 3, 5], 99)), 0.05
    cfg = LossConfig(temperature=tau, margin=9.0, query_query=False, document_document=False, mask_identical=False)
    own = torch.cat([torch.eye(6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)], dim=1)
    scores = batch.queries @ torch.cat([batch.positives, batch.negatives]).T / tau
    positive = (batch.queries * batch.positives).sum(dim=1)[:, None] / tau
    scores = torch.cat([positive, scores.masked_fill(own, -torch.inf)], dim=1)
    expected = (torch.logsumexp(scores, dim=1) - positive[:, 0]).sum()
    assert torch.equal(contrastive_rows(batch, slice(0, 6), cfg)[0], expected)
    assert not torch.equal(contrastive_rows(batch, slice(0, 6), cfg.model_copy(update={"hardness": 1e-3}))[0], expected)


def test_hard_negatives_weigh_more_and_the_weights_of_a_query_have_the_mean_one() -> None:
    batch = make_batch(3, 4, [0, 1, 1], 9)
    cosines, mask = batch.queries @ batch.positives.T, ~torch.eye(4, dtype=torch.bool)
    weights = log_hardness(cosines, mask, beta=3.0).exp().masked_fill(~mask, 0.0)
    torch.testing.assert_close(weights.sum(dim=1), torch.full((4,), 3.0, dtype=torch.float64))
    for row in range(4):
        places = [j for j in range(4) if j != row]
        by_cosine, by_weight = (sorted(places, key=lambda j, of=of: float(of[row, j])) for of in (cosines, weights))
        assert by_cosine == by_weight and weights[row, by_weight[-1]] > 1 > weights[row, by_weight[0]]


def test_the_spread_out_term_is_least_for_orthogonal_texts_and_ignores_repeated_ones() -> None:
    different = ~torch.eye(3, dtype=torch.bool)
    assert float(mean_squares(torch.eye(3), torch.eye(3), different)) == 0
    assert float(mean_squares(torch.ones(3, 1), torch.ones(3, 1), different)) == 3
    assert float(mean_squares(torch.ones(3, 1), torch.ones(3, 1), different & False)) == 0


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
                values.append(float(literal_loss(moved, LossConfig()).detach()))
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
    found = distillation_loss(margins, torch.logit(teachers), temperature, total=7)
    assert float(found) == pytest.approx(expected / 7, rel=1e-3, abs=1e-6)
