"""The gradient cache with dropout, the distinct texts of a batch, and who computes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.objective.embedding_step import assign_texts
from qwen3emb.objective.microbatch import PlainEngine, cached_backward
from qwen3emb.objective.ranks import balance
from qwen3emb.objective.rows import TrainingRow


class Batch:
    """Random states in place of a packed batch."""

    def __init__(self, tokens: int) -> None:
        self.states = torch.randn(tokens, 6, dtype=torch.float64)
        self.tokens = tokens


@pytest.mark.parametrize("budget", [5, 6])
def test_the_second_forward_drops_what_the_first_one_dropped(budget: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 3)).double()
    inputs = [Batch(4), Batch(2)]
    seen: list[torch.Tensor] = []

    def forward(batch: Batch) -> torch.Tensor:
        out = layer(batch.states)
        seen.append(out.detach().clone())
        return out

    weight = torch.randn(6, 3, dtype=torch.float64)

    def gradient_of(vectors: torch.Tensor) -> torch.Tensor:
        leaf = vectors.requires_grad_()
        return torch.autograd.grad((leaf * weight).sum().tanh(), leaf)[0]

    torch.manual_seed(7)
    cached_backward(PlainEngine(layer), inputs, forward, gradient_of, budget)  # type: ignore[arg-type]
    found = [p.grad.clone() for p in layer.parameters()]
    after = torch.rand(1)
    if budget < 6:
        assert torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:])) and len(seen) == 4
    else:
        assert len(seen) == 2, "everything fits, and yet it was computed twice"

    layer.zero_grad()
    torch.manual_seed(7)
    (torch.cat([layer(batch.states) for batch in inputs]) * weight).sum().tanh().backward()
    for gradient, parameter in zip(found, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert torch.equal(after, torch.rand(1)), "replaying moved the random state that training goes on with"


def test_a_text_is_computed_once_however_often_it_stands_in_the_batch() -> None:
    rows = [TrainingRow("a", "q", "d", ("n", "d2", "left out")), TrainingRow("b", "q", "d2", ("d",))]
    plan = assign_texts(rows, hard_negatives=2)
    assert (plan.queries, plan.documents) == (["q"], ["d", "n", "d2"])
    assert (plan.query_of, plan.positive_of) == ([0, 0], [1, 3])
    assert (plan.owner, plan.negative_of) == ([0, 0, 1], [2, 3, 1])
    graded = assign_texts(rows, hard_negatives=0, symmetric=True)
    assert (graded.queries, graded.documents, graded.positive_of) == (["q", "d", "d2"], [], [1, 2])


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 6))
def test_every_item_has_one_rank_and_loads_differ_by_at_most_one_item(lengths: list[int], world: int) -> None:
    shares = balance(lengths, world)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    loads = [sum(lengths[i] + 1 for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0) + 1
