"""A verdict is a win or a loss only where the interval leaves zero out."""

from __future__ import annotations

import pytest

from qwen3emb.metrics.verdict import compare, reaches


@pytest.mark.parametrize(
    ("gains", "word"), [([0.1] * 20, "WIN"), ([-0.1] * 20, "WORSE"), ([0.0] * 20, "EVEN"), ([0.4, -0.3] * 10, "EVEN")]
)
def test_zero_within_the_interval_is_even(gains: list[float], word: str) -> None:
    base = {str(i): 0.5 for i in range(len(gains))}
    figures = {"base": base, "ours": {q: base[q] + gain for q, gain in zip(base, gains, strict=True)}}
    found = compare("ndcg@10", "ours", "base", figures)
    assert found is not None and found.word == word and found.queries == 20
    assert found.difference == pytest.approx(sum(gains) / 20)
    assert found.line().startswith(f"VERDICT: {word}  ndcg@10  ours  base  {sum(gains) / 20:+.4f} [")
    assert found.as_json() | {"verdict": word, "model": "ours"} == found.as_json()


def test_without_a_query_in_common_there_is_none() -> None:
    assert compare("ndcg@10", "a", "b", {"a": {"1": 1.0}, "b": {"2": 1.0}}) is None


def test_even_is_reached_by_a_win_and_not_the_other_way() -> None:
    assert [reaches(word, "even") for word in ("WIN", "EVEN", "WORSE")] == [True, True, False]
    assert [reaches(word, "win") for word in ("WIN", "EVEN", "WORSE")] == [True, False, False]
