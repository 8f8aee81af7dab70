"""Runs of words of evaluation texts in training texts, against a search word by word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.text.decontamination import EvaluationNgrams

words = st.sampled_from(["red", "blue", "green", "loud"])
texts = st.lists(words, min_size=3, max_size=14).map(" ".join)


def runs(text: str, size: int) -> set[tuple[str, ...]]:
    found = text.split()
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}


@given(st.lists(texts, min_size=1, max_size=5), texts, st.sampled_from([0.25, 0.5, 1.0]))
def test_the_largest_share_counts(evaluation: list[str], training: str, share: float) -> None:
    shares = [len(runs(text, 3) & runs(training, 3)) / len(runs(text, 3)) for text in evaluation]
    best = max(range(len(shares)), key=lambda i: shares[i])
    index = EvaluationNgrams([f"text {i}" for i in range(len(evaluation))], evaluation, share, size=3)
    want = f"text {best}, {shares[best]:.0%} of its runs of 3" if shares[best] >= share else None
    assert index.held(training) == want


def test_case_and_spaces_do_not_count_and_short_texts_match_their_like() -> None:
    index = EvaluationNgrams(["a", "b", "c"], ["Parse a DATE", "", "日本国憲法前文の全文を読む"], 0.9)
    assert index.held("parse  a date") == "a, 100% of its runs of 8"
    assert index.held("a long text about how to parse a date or a time of the day") is None
    assert index.held("まず日本国憲法前文の全文を読む。") == "c, 100% of its runs of 8"
    assert index.held("") is None
    assert EvaluationNgrams([], [], 0.5).held("parse a date") is None
