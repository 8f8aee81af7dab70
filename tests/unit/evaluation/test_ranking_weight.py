"""The reranker's share is taken from the dev set where it helps on queries that it was not chosen on."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.evaluation.ranking import Ranking, ranking_metrics, reranked
from qwen3emb.evaluation.rerank_weight import chosen_share, chosen_weight
from qwen3emb.text.retrieval_set import RetrievalSet

QUERIES, DOCUMENTS = 12, 4
DATA = RetrievalSet(
    {f"q{i}": "q" for i in range(QUERIES)},
    {f"d{j}": ("", "d") for j in range(DOCUMENTS)},
    {f"q{i}": {f"d{i % DOCUMENTS}": 1} for i in range(QUERIES)},
)
FIRST = Ranking(np.tile(np.arange(DOCUMENTS), (QUERIES, 1)), np.tile(np.linspace(0.9, 0.6, DOCUMENTS), (QUERIES, 1)))


def best_weight(data: RetrievalSet, first: Ranking, judged: list[np.ndarray]) -> float:
    return chosen_weight(data, first, judged).weight


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


def test_noise_beside_a_good_ranking_gets_no_share() -> None:
    noise = [best_weight(*drawn(seed, 0.0)) for seed in range(40)]
    assert noise.count(0.0) >= 38


def test_where_nothing_is_known_at_all_chance_alone_seldom_gives_a_share() -> None:
    """Every share is as good as none, so a false one costs nothing."""
    noise = [best_weight(*drawn(seed, 0.0, informed=False)) for seed in range(40)]
    assert noise.count(0.0) >= 32


def test_knowledge_gets_a_share() -> None:
    knowing = [best_weight(*drawn(seed, 3.0)) for seed in range(20)]
    assert sum(weight > 0 for weight in knowing) >= 18


def test_the_choice_is_that_of_doing_it_by_hand() -> None:
    """Each sample of queries chooses its share by loops, and is judged on the queries that it left out."""
    figures = np.random.default_rng(5).random((11, 9)) + np.linspace(0, 0.3, 11)[:, None]
    gains, unseen = (figures - figures[0]).tolist(), []
    for row in np.random.default_rng(0).multinomial(9, [1 / 9] * 9, size=200).tolist():
        left_out = [query for query in range(9) if row[query] == 0]
        means = [sum(times * gain for times, gain in zip(row, share, strict=True)) / 9 for share in gains]
        chosen = max(range(11), key=lambda share: (round(means[share], 6), share))
        if left_out:
            unseen.append(sum(gains[chosen][query] for query in left_out) / len(left_out))
    choice = chosen_share(figures, 200)
    assert choice.unseen == pytest.approx(sum(unseen) / len(unseen))
    best = gains[round(choice.best * 10)]
    assert sum(best) == pytest.approx(max(map(sum, gains[1:])))
    assert choice.gain == pytest.approx(sum(best) / 9) and choice.error == pytest.approx(np.std(best, ddof=1) / 3)
    assert choice.weight == (choice.best if choice.unseen > 0.84 * choice.error else 0.0)


def test_what_is_expected_of_unseen_queries_is_what_more_queries_show() -> None:
    data, first, judged = drawn(1000, 1.5, 800)
    shares = [round(0.1 * n, 1) for n in range(11)]
    truth = {w: ranking_metrics(data, reranked(first, judged, w), [10])["ndcg@10"] for w in shares}
    found = [chosen_weight(*drawn(seed, 1.5)) for seed in range(24)]
    assert all(one.weight in (0.0, one.best) and one.queries == 40 for one in found)
    said, shown = np.mean([one.unseen for one in found]), np.mean([truth[one.best] - truth[0.0] for one in found])
    assert said == pytest.approx(shown, abs=0.02) and np.mean([one.gain for one in found]) > said
