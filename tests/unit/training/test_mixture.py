"""The mixture: batches of one dataset each, in the wanted shares, as a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import json

import pytest

from qwen3emb.training.mixture import Mixture

SIZES = {"big": 900, "small": 100, "tiny": 3, "none": 0}


def mixture(temperature: float = 1.0, seed: int = 0, **weights: float) -> Mixture:
    return Mixture(SIZES, weights, temperature, 8, seed)


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    one = mixture()
    in_order = [one.batch(step) for step in range(50)]
    assert [mixture().batch(step) for step in (49, 3, 17)] == [in_order[step] for step in (49, 3, 17)]
    assert [mixture(seed=1).batch(step) for step in range(50)] != in_order


def test_every_row_of_a_set_is_seen_once_per_epoch_of_that_set() -> None:
    seen: dict[str, list[int]] = {}
    for name, rows in (mixture().batch(step) for step in range(400)):
        assert len(rows) == min(8, SIZES[name])
        seen.setdefault(name, []).extend(rows)
    for name, rows in seen.items():
        size = SIZES[name]
        for start in range(0, len(rows) - size, size):
            assert sorted(rows[start : start + size]) == list(range(size)), name


def shares(drawn: Mixture, steps: int = 4000) -> dict[str, float]:
    names = [drawn.batch(step)[0] for step in range(steps)]
    return {name: names.count(name) / steps for name in SIZES}


def test_shares_follow_rows_weights_and_temperature() -> None:
    plain = shares(mixture())
    assert plain["big"] == pytest.approx(900 / 1003, abs=0.03) and plain["none"] == 0
    levelled = shares(mixture(temperature=1e9, tiny=0.0))
    assert levelled["big"] == pytest.approx(0.5, abs=0.03) and levelled["tiny"] == 0
    weighted = shares(mixture(small=9.0, tiny=0.0))
    assert weighted["small"] == pytest.approx(0.5, abs=0.03)


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no dataset"):
        Mixture({"a": 5}, {"a": 0.0}, 1.0, 8, 0)


def test_with_twenty_data_sets_each_epoch_is_shuffled_once_and_batches_are_those_of_earlier_versions() -> None:
    """The hash is of 300 steps at 9856602, where a cache of 8 permutations computed nearly every batch's anew."""
    sizes = {f"set{i:02d}": 7 + 13 * i for i in range(20)}
    drawn = Mixture(sizes, {}, 2.0, 16, 5)
    batches = [drawn.batch(step) for step in range(300)]
    wanted = "a06ec24a418abc8f65f844ac5c227c26a0d13ed6792b59966b6920f3afb3cef1"
    assert hashlib.sha256(json.dumps(batches).encode()).hexdigest() == wanted
    rows = {name: sum(len(numbers) for asked, numbers in batches if asked == name) for name in sizes}
    epochs = [-(-rows[name] // sizes[name]) for name in drawn.names]
    assert [order.shuffled for order in drawn.orders] == epochs and sum(epochs) < 100
