"""Mean lengths under a limit, against samples."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.pipeline.planning.texts import Lengths, LogNormal, Uniform, text_tokens, written_words

DRAWS = np.random.default_rng(0)
SAMPLES = [
    (Uniform(54, 256), DRAWS.uniform(54, 256, 400_000)),
    (Uniform(0, 100), DRAWS.uniform(0, 100, 400_000)),
    (LogNormal(78, 1.24), DRAWS.lognormal(np.log(78), 1.24, 400_000)),
]


@pytest.mark.parametrize("limit", [20, 62, 160, 1000])
@pytest.mark.parametrize(("lengths", "sample"), SAMPLES)
def test_the_mean_under_a_limit_is_that_of_a_sample(lengths: Lengths, sample: np.ndarray, limit: float) -> None:
    assert lengths.capped(limit) == pytest.approx(np.minimum(sample, limit).mean(), rel=0.01)


def test_a_log_normal_has_the_mean_it_is_asked_for() -> None:
    assert LogNormal.of_mean(150, 0.8).capped(1e9) == pytest.approx(150)
    assert LogNormal(10, 1).capped(0) == 0


def test_one_length_is_cut_and_never_divided_by_nothing() -> None:
    assert [Uniform(25, 25).capped(limit) for limit in (10, 25, 30)] == [10, 25, 25]
    assert Uniform(25, 25).longest == 25 and LogNormal(10, 1).longest == float("inf")


def test_a_control_token_is_one() -> None:
    assert text_tokens("<|im_start|>user\nabcdefg<|im_end|>", 4) == 2 + 12 / 4


def test_words_are_those_of_the_upper_ends() -> None:
    assert written_words({"5-10": 0.7, "10-20": 0.3}) == pytest.approx(13)
