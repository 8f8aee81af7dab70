"""A merge is kept where it is not worse than the best single checkpoint, and the best of many by luck is not."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.merging.candidates import Candidate, singles
from qwen3emb.merging.choice import choose

QUERIES = 40
STEPS = ["step_1", "step_2"]


def merge(name: str) -> Candidate:
    return Candidate(name, tuple(STEPS))


def around(rng: np.random.Generator, mean: float) -> dict[str, float]:
    return {f"q{i}": float(value) for i, value in enumerate(np.clip(rng.normal(mean, 0.05, QUERIES), 0, 1))}


def shifted(figures: dict[str, float], by: float) -> dict[str, float]:
    return {query: value + by for query, value in figures.items()}


def test_a_better_merge_is_kept_and_the_table_has_the_differences() -> None:
    first = around(np.random.default_rng(0), 0.6)
    figures = {"step_1": first, "step_2": shifted(first, 0.01), "a": shifted(first, 0.05), "b": shifted(first, 0.02)}
    choice = choose([*singles(STEPS), merge("b"), merge("a")], figures)
    assert (choice.kept, choice.single, choice.merge, choice.queries) == ("a", "step_2", "a", QUERIES)
    assert choice.unseen == pytest.approx(0.04)
    assert [row.name for row in choice.rows] == ["step_1", "step_2", "b", "a"]
    for row in choice.rows:
        assert row.ndcg == pytest.approx(np.mean(list(figures[row.name].values())))
        assert row.difference == pytest.approx(row.ndcg - np.mean(list(figures["step_2"].values())))
        assert row.low <= row.difference <= row.high
        assert row.chosen == (row.name == "a")
    assert choice.rows[3].as_json() == {
        "name": "a",
        "dev_ndcg@10": round(choice.rows[3].ndcg, 5),
        "difference": 0.04,
        "low": 0.04,
        "high": 0.04,
        "chosen": True,
    }
    assert choice.sentence().startswith("a is kept: dev nDCG@10 0.6") and "chance" not in choice.sentence()


def test_a_merge_that_is_worse_on_average_is_not_kept() -> None:
    rng = np.random.default_rng(1)
    first = around(rng, 0.6)
    noise = rng.normal(0, 0.1, QUERIES)
    figures = {"step_1": first, "step_2": shifted(first, -0.02)}
    figures["a"] = {q: v + float(n) for (q, v), n in zip(first.items(), noise - noise.mean() - 0.004, strict=True)}
    choice = choose([*singles(STEPS), merge("a")], figures)
    assert choice.kept == "step_1" and not choice.rows[2].chosen
    assert choice.rows[2].difference == pytest.approx(-0.004)
    said = choice.sentence()
    assert said.startswith("no merge is kept, but step_1 as it is; a is the best merge: dev nDCG@10")
    assert "-0.0040 [" in said and "on 40 dev queries so small a difference may be chance" in said


def test_a_merge_that_changes_nothing_is_not_worse() -> None:
    first = around(np.random.default_rng(2), 0.6)
    assert choose([*singles(STEPS), merge("a")], {"step_1": first, "step_2": first, "a": first}).kept == "a"


def test_of_nearly_equal_checkpoints_the_last_is_kept_and_of_merges_the_first() -> None:
    first = around(np.random.default_rng(3), 0.6)
    figures = {"step_1": first, "step_2": shifted(first, -0.0009), "a": shifted(first, -0.1), "b": shifted(first, 0.01)}
    figures["c"] = shifted(first, 0.0109)
    assert choose([*singles(STEPS), merge("a")], figures).kept == "step_2"
    assert choose([*singles(STEPS), merge("b"), merge("c")], figures).kept == "b"
    figures |= {"step_2": shifted(first, -0.0011), "b": shifted(first, 0.0098)}
    assert choose([*singles(STEPS), merge("a")], figures).kept == "step_1"
    assert choose([*singles(STEPS), merge("b"), merge("c")], figures).kept == "c"


def test_without_a_merge_the_best_checkpoint_is_kept() -> None:
    first = around(np.random.default_rng(4), 0.6)
    choice = choose(singles(STEPS), {"step_1": shifted(first, 0.01), "step_2": first})
    assert (choice.kept, choice.merge, choice.unseen) == ("step_1", None, 0.0)
    assert choice.sentence().startswith("step_1 is kept, the best of 2 single checkpoints: dev nDCG@10 0.6")


def test_the_best_of_many_merges_by_luck_is_kept_less_often_than_its_mean_says() -> None:
    """All are alike. The best of ten nearly always has a higher mean than the one checkpoint, which proves nothing."""
    higher = kept = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        figures = {name: around(rng, 0.6) for name in ["step_1", *map(str, range(10))]}
        choice = choose([*singles(["step_1"]), *(merge(str(i)) for i in range(10))], figures)
        rows = {row.name: row for row in choice.rows}
        higher += rows[str(choice.merge)].difference >= 0
        kept += choice.kept != "step_1"
    assert higher >= 45 and kept <= 35
