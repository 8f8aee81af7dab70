"""Choosing settings by trials, BM25 and the sets, against slow references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.quality.bm25 import Bm25, words
from benchmarks.quality.choosing import Stage, choose, grid
from benchmarks.quality.measures import balanced
from benchmarks.quality.reranker import _columns, asked, ranked
from benchmarks.quality.results import Line, mean
from benchmarks.quality.side import steps_that_fit

STAGES = [Stage(grid(lr=[1, 2], batch=[8, 16])), Stage([{}, {"pooling": "last"}])]


def trials(figures: dict[str, float]) -> Any:
    """A trial's line by its settings, `lr/batch/pooling`; those without a figure are not done."""

    def trial(settings: dict[str, Any]) -> Line | None:
        name = "/".join(str(settings[key]) for key in ("lr", "batch", "pooling"))
        if name not in figures:
            return None
        facts = {"steps_per_second": 1 / figures[name]}
        return Line("p", "s", settings, 0, 1, 1, {"dev": {"q": figures[name]}}, facts)

    return trial


START = {"lr": 0, "batch": 0, "pooling": "mean"}
GRID = {"1/8/mean": 0.1, "1/16/mean": 0.4, "2/8/mean": 0.3, "2/16/mean": 0.2}


def test_the_grid_comes_first_and_the_next_stage_goes_on_from_its_best() -> None:
    named, best = choose(STAGES, START, trials({}), 100)
    assert [(one["lr"], one["batch"]) for one in named] == [(1, 8), (1, 16), (2, 8), (2, 16)] and best is None
    named, best = choose(STAGES, START, trials(GRID), 100)
    assert named[4:] == [{"lr": 1, "batch": 16, "pooling": "last"}] and best is None
    named, best = choose(STAGES, START, trials(GRID | {"1/16/last": 0.39}), 100)
    assert len(named) == 5 and best == {"lr": 1, "batch": 16, "pooling": "mean"}
    _, best = choose(STAGES, START, trials(GRID | {"1/16/last": 0.41}), 100)
    assert best == {"lr": 1, "batch": 16, "pooling": "last"}


def test_speed_decides_where_the_result_is_the_same() -> None:
    _, best = choose([Stage(grid(lr=[1, 2], batch=[8]), by="speed")], START, trials(GRID), 100)
    assert best is not None and best["lr"] == 1


def test_few_trials_are_the_first_ones_and_none_is_what_they_begin_with() -> None:
    assert choose(STAGES, START, trials({}), 0) == ([], START)
    named, best = choose(STAGES, START, trials(GRID), 3)
    assert len(named) == 3 and best == {"lr": 1, "batch": 16, "pooling": "mean"}


def test_bm25_is_its_formula() -> None:
    documents = ["The cat sat.", "the dog, the dog", "a cat and a dog and a bird", ""]
    counts = [words(document) for document in documents]
    average = sum(map(len, counts)) / 4
    query = "cat the Cat fish"
    expected = []
    for count in counts:
        score = 0.0
        for word in words(query):
            holding = sum(word in other for other in counts)
            rarity = math.log(1 + (4 - holding + 0.5) / (holding + 0.5))
            frequency = count.count(word)
            score += rarity * frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * len(count) / average))
        expected.append(score)
    index = Bm25(documents)
    assert index.scores(query).tolist() == pytest.approx(expected)
    assert index.top(query, 2) == sorted(range(4), key=lambda i: -expected[i])[:2]
    assert index.top("fish", 3) == [0, 1, 2]


def test_the_mean_of_a_balanced_set_is_the_mean_of_the_sets_means() -> None:
    sets = [{"a": 1.0, "b": 0.0, "c": 0.5}, {"a": 0.2}]
    found = balanced(sets, ["one", "two"])
    assert list(found) == ["one/a", "one/b", "one/c", "two/a"]
    assert mean(found) == pytest.approx((0.5 + 0.2) / 2)


def test_steps_that_fit_leave_a_reserve() -> None:
    assert steps_that_fit(trial_seconds=6.0, left=100.0) == 48
    assert steps_that_fit(trial_seconds=6.0, left=-1.0, least=9) == 9


def test_each_of_the_peer_s_losses_gets_every_document_with_its_label() -> None:
    rows = [("q", "p", ("n", "m")), ("r", "s", ("t", "u"))]
    pairs = _columns(rows, "bce")
    assert list(zip(pairs["query"], pairs["document"], pairs["label"], strict=True)) == [
        (asked(q), d, label) for q, p, hard in rows for d, label in [(p, 1.0), (hard[0], 0.0), (hard[1], 0.0)]
    ]
    lists = _columns(rows, "lambda")
    assert lists["documents"] == [["p", "n", "m"], ["s", "t", "u"]] and lists["labels"] == [[1.0, 0.0, 0.0]] * 2
    columns = _columns(rows, "mnrl")
    assert columns == {
        "query": [asked("q"), asked("r")],
        "positive": ["p", "s"],
        "negative_0": ["n", "t"],
        "negative_1": ["m", "u"],
    }


def test_equal_scores_leave_the_order_of_bm25(shared_data: Path) -> None:
    from benchmarks.quality import data

    few = data.of("reranked/small")
    run = {query: data.in_order(documents) for query, documents in data.candidates(few, 5).items()}
    assert len(few.queries) == 20
    assert ranked(lambda query, documents: np.zeros(len(documents)), "reranked/small", 5) == data.ndcg(few, run)
    last_first = ranked(lambda query, documents: np.arange(len(documents)), "reranked/small", 5)
    assert mean(last_first) < mean(data.ndcg(few, run))


def test_hard_negatives_are_no_answers_and_the_dev_split_is_not_trained_on(shared_data: Path) -> None:
    from benchmarks.quality import data

    scifact, rows = data._scifact("train"), data.labelled(2, others=1)
    texts = dict(zip(scifact.corpus, scifact.texts(), strict=True))
    answers: dict[str, set[str]] = {}
    for query, grades in scifact.qrels.items():
        answers.setdefault(scifact.queries[query], set()).update(texts[d] for d in grades)
    dev, test = (set(data.of(name).queries.values()) for name in ("dev", "test"))
    assert len(dev) == 80 and len(test) == 300 and len(data.of("dev").corpus) == 300
    for query, document, negatives in rows:
        assert query not in dev and query not in test
        assert document in answers[query] and len(set(negatives)) == 3
        assert not set(negatives) & answers[query]
    assert len(data.labelled(most=300)) == 300


def test_the_smaller_test_split_keeps_all_answers_and_what_bm25_confuses_with_them(shared_data: Path) -> None:
    from benchmarks.quality import data

    whole, part = data.of("test/whole"), data.of("test")
    assert part.queries == whole.queries and part.qrels == whole.qrels
    assert len(part.corpus) == data.TEST_DOCUMENTS and part.corpus.items() <= whole.corpus.items()
    assert {d for grades in part.qrels.values() for d in grades} <= part.corpus.keys()
    for found in list(data.candidates(whole, 2).values()):
        assert set(found) <= part.corpus.keys()
    assert len(data.of("reranked").queries) == 60 and len(data.of("dev/whole").queries) == 40


def test_synthetic_pairs_leave_out_what_is_measured_on(shared_data: Path, tmp_path: Path) -> None:
    from benchmarks.quality import data

    asked_there = next(iter(data.of("test").queries.values()))
    table = pa.table({"query": ["new", asked_there.upper()], "document": ["a", "b"]})
    (tmp_path / "synthesize" / "pairs").mkdir(parents=True)
    pq.write_table(table, tmp_path / "synthesize" / "pairs" / "0.parquet")
    assert data.synthetic(tmp_path) == [("new", "a", ())]
    with pytest.raises(SystemExit, match="no pairs"):
        data.synthetic(tmp_path / "synthesize" / "other")
