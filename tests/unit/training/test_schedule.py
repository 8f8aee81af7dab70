"""Sample order and learning rate are pure functions with the properties training relies on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.config.training import OptimizerConfig
from qwen3emb.training.mixture import SampleOrder
from qwen3emb.training.schedule import learning_rate

FROZEN = [[4, 6, 7, 2], [0, 3, 5, 10], [9, 8, 1, 7]]


def batch_rows(step: int, size: int, rows: int, seed: int) -> list[int]:
    return SampleOrder(rows, seed).batch(step, size)


@given(rows=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_epoch_visits_every_row_once(rows: int, batch: int, seed: int) -> None:
    drawn = [n for step in range(2 * rows) for n in batch_rows(step, batch, rows, seed)]
    for epoch in range(len(drawn) // rows):
        assert sorted(drawn[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_order_depends_on_seed_and_epoch_only() -> None:
    assert batch_rows(7, 4, 11, 0) == batch_rows(7, 4, 11, 0)
    assert batch_rows(0, 11, 11, 0) != batch_rows(0, 11, 11, 1)
    assert batch_rows(0, 11, 11, 0) != batch_rows(1, 11, 11, 0)


def test_the_order_is_that_of_earlier_versions() -> None:
    """Figures of 9856602: a run that was begun then goes on with the same batches."""
    assert [batch_rows(step, 4, 11, 0) for step in range(3)] == FROZEN
    order = SampleOrder(11, 0)
    assert [order.batch(step, 4) for step in range(3)] == FROZEN and order.shuffled == 2
    assert order.batch(0, 4) == FROZEN[0], "asked for again, a position gives the same"


def test_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    cfg = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="cosine", min_lr_ratio=0.1)
    values = [learning_rate(step, 20, cfg) for step in range(21)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))
    assert values[20] == pytest.approx(0.1)
    linear = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="linear", min_lr_ratio=0.0)
    assert learning_rate(5, 10, linear) == pytest.approx(0.5)
    stable = OptimizerConfig(lr=1.0, warmup_steps=2, schedule="wsd", min_lr_ratio=0.0, decay_share=0.25)
    assert [learning_rate(step, 20, stable) for step in (2, 14, 15)] == [1.0, 1.0, 1.0]
    assert learning_rate(18, 20, stable) == pytest.approx(0.4)
