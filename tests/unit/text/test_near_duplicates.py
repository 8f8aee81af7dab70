from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.core.errors import UserError
from qwen3emb.text.near_duplicates import minhash, near_duplicates

VOCABULARY = [f"word{i}" for i in range(5000)]


def sample_words(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def jaccard(first: list[str], second: list[str], size: int) -> float:
    sets = [{tuple(w[i : i + size]) for i in range(len(w) - size + 1)} for w in (first, second)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("changed", [0, 2, 6, 15, 100])
def test_signatures_estimate_the_jaccard_similarity_of_word_runs(changed: int) -> None:
    first = sample_words(300, seed=changed)
    second = list(first)
    for place in random.Random(1).sample(range(300), changed):
        second[place] = "changed"
    signatures = [minhash(" ".join(w), num_perm=1024) for w in (first, second)]
    estimate = float((signatures[0] == signatures[1]).mean())
    assert estimate == pytest.approx(jaccard(first, second, 5), abs=0.06)


def test_signature_form_and_what_it_ignores() -> None:
    signature = minhash("The quick brown fox jumps over the lazy dog")
    assert signature.shape == (64,) and signature.dtype == np.uint64
    assert np.array_equal(signature, minhash("the QUICK brown\n fox  jumps over the lazy dog"))
    assert not np.array_equal(minhash("def f(a, b): return a + b"), minhash("def f(a, b): return a - b"))
    assert np.array_equal(minhash("ab"), minhash("ab")) and not np.array_equal(minhash("ab"), minhash("ba"))
    assert minhash("").shape == (64,)


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "机器学习模型可以从大量文本数据中学习语言的表示方法、并且在检索任务中取得很好的效果。" * 2
    near = (minhash(text) == minhash(text.replace("很好", "不错", 1))).mean()
    far = (minhash(text) == minhash("今天天气很好、我们去公园散步、然后回家吃饭、晚上看一部电影再睡觉。")).mean()
    assert near > 0.6 and far < 0.1


def brute_force(ids: list[str], rows: np.ndarray, threshold: float) -> dict[str, str]:
    kept: list[int] = []
    duplicates = {}
    for i in range(len(ids)):
        similar = [j for j in kept if np.mean(rows[i] == rows[j]) >= threshold - 1e-12]
        if similar:
            duplicates[ids[i]] = ids[similar[0]]
        else:
            kept.append(i)
    return duplicates


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.55, 0.7, 0.8, 0.95, 1.0]), st.sampled_from([16, 64]))
def test_near_duplicates_are_those_of_comparing_every_pair(seed: int, threshold: float, places: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**63, size=(6, places), dtype=np.uint64)
    rows = base[rng.integers(0, 6, size=40)]
    noise = rng.random(rows.shape) < rng.random((40, 1)) * 0.5
    rows = np.where(noise, rng.integers(0, 2**63, size=rows.shape, dtype=np.uint64), rows)
    ids = [f"id{i}" for i in range(40)]
    assert near_duplicates(ids, rows, threshold) == brute_force(ids, rows, threshold)


def test_first_in_order_is_kept() -> None:
    words = sample_words(100, seed=0)
    texts = [
        "  ".join(words),
        "unrelated text of quite other words here",
        " ".join(words),
        " ".join([*words, "x"]),
    ]
    signatures = [minhash(text) for text in texts]
    assert near_duplicates(["d", "c", "b", "a"], signatures, 0.8) == {"b": "d", "a": "d"}
    assert near_duplicates(["a", "b", "c", "d"], signatures[::-1], 0.8) == {"b": "a", "d": "a"}
    assert near_duplicates([], [], 0.8) == {}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="threshold"):
        near_duplicates(["a"], [minhash("a")], 1.5)
    with pytest.raises(UserError, match="distinct"):
        near_duplicates(["a", "a"], [minhash("a"), minhash("b")], 0.8)
