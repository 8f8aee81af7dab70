"""The reranker's share is taken from the dev set only where it clearly helps."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.evaluation.ranking import Ranking, ranking_metrics, reranked
from qwen3emb.evaluation.rerank_weight import best_weight, chosen_weight
from qwen3emb.text.retrieval_set import RetrievalSet

QUERIES, DOCUMENTS = 12, 4
DATA = RetrievalSet(
    {f"q{i}": "q" for i in range(QUERIES)},
    {f"d{j}": ("", "d") for j in range(DOCUMENTS)},
    {f"q{i}": {f"d{i % DOCUMENTS}": 1} for i in range(QUERIES)},
)
FIRST = Ranking(np.tile(np.arange(DOCUMENTS), (QUERIES, 1)), np.tile(np.linspace(0.9, 0.6, DOCUMENTS), (QUERIES, 1)))


def scores(right: set[int], wrong: set[int] = frozenset()) -> list[np.ndarray]:
    """Probabilities that favour the relevant document of queries `right` and another one of `wrong`."""
    out = []
    for i in range(QUERIES):
        row = np.linspace(0.6, 0.4, DOCUMENTS)
        if i in right | wrong:
            row[i % DOCUMENTS if i in right else (i + 1) % DOCUMENTS] = 0.99
        out.append(row)
    return out


def test_a_reranker_that_knows_decides_alone() -> None:
    assert best_weight(DATA, FIRST, scores(set(range(QUERIES)))) == 1.0


def test_one_lucky_query_is_no_reason() -> None:
    assert best_weight(DATA, FIRST, scores({3}, {4})) == 0.0


def test_a_reranker_that_changes_nothing_has_no_share() -> None:
    assert best_weight(DATA, FIRST, scores(set())) == 0.0


def drawn(
    seed: int, knows: float, queries: int = 40, informed: bool = True
) -> tuple[RetrievalSet, Ranking, list[np.ndarray]]:
    """A first ranking, whose answers are in the upper places or anywhere, and a reranker that knows `knows` of them."""
    rng, documents = np.random.default_rng(seed), 20
    upper = np.minimum(rng.geometric(0.3, queries) - 1, documents - 1)
    answers = upper if informed else rng.integers(documents, size=queries)
    data = RetrievalSet(
        {f"q{i}": "q" for i in range(queries)},
        {f"d{j}": ("", "d") for j in range(documents)},
        {f"q{i}": {f"d{answers[i]}": 1} for i in range(queries)},
    )
    cosines = np.sort(rng.uniform(0.3, 0.9, (queries, documents)).astype(np.float32), axis=1)[:, ::-1]
    first = Ranking(np.tile(np.arange(documents), (queries, 1)), cosines)
    margins = rng.normal(size=(queries, documents))
    margins[np.arange(queries), answers] += knows
    return data, first, list(1 / (1 + np.exp(-margins)))


@pytest.mark.parametrize("informed", [True, False])
def test_noise_gets_no_share(informed: bool) -> None:
    """Where the first ranking knows nothing either, every share is as good as none: only chance tells them apart."""
    noise = [best_weight(*drawn(seed, 0.0, informed=informed)) for seed in range(40)]
    assert noise.count(0.0) >= 38


def test_knowledge_gets_a_share() -> None:
    knowing = [best_weight(*drawn(seed, 3.0)) for seed in range(20)]
    assert sum(weight > 0 for weight in knowing) >= 18


def test_a_sure_small_share_comes_before_an_unsure_larger_one() -> None:
    choices = {}
    for seed in (3, 4, 6):
        data, first, judged = drawn(seed, 1.0)
        runs = [reranked(first, judged, round(0.1 * n, 1)) for n in range(11)]
        means = [ranking_metrics(data, run, [10])["ndcg@10"] for run in runs]
        highest = max(range(1, 11), key=lambda n: round(means[n], 6)) / 10
        choice = chosen_weight(data, first, judged)
        assert choice.gain == pytest.approx(means[round(choice.best * 10)] - means[0], abs=1e-4)
        assert (choice.low > 0) == (choice.weight > 0)
        choices[seed] = choice.weight, choice.best, highest
    # one share below the highest, the highest itself, none
    assert choices == {3: (0.2, 0.2, 0.3), 4: (0.3, 0.3, 0.3), 6: (0.0, 0.3, 0.3)}


def test_the_interval_of_the_gain_holds_what_more_queries_show() -> None:
    data, first, judged = drawn(1000, 1.5, 800)
    shares = [round(0.1 * n, 1) for n in range(11)]
    truth = {w: ranking_metrics(data, reranked(first, judged, w), [10])["ndcg@10"] for w in shares}
    found = [chosen_weight(*drawn(seed, 1.5)) for seed in range(24)]
    assert all(one.weight in (0.0, one.best) and one.queries == 40 for one in found)
    inside = [one.low <= truth[one.best] - truth[0.0] <= one.high for one in found]
    assert sum(inside) >= 22, "the best of eleven shares, and still 95 %"
