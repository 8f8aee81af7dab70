"""Validation rows of the reranker: over all datasets, by query, and none of them is trained on."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

from qwen3emb.objective.rows import TrainingRow
from qwen3emb.training.validation import held_out, query_hashes


def rows_of(**sizes: int) -> list[TrainingRow]:
    """One row for each query of the datasets."""
    return [
        TrainingRow(f"{name}/{i}", f"{name} question {i}", f"{name} answer {i}", (f"{name} other {i}",), name)
        for name, size in sizes.items()
        for i in range(size)
    ]


def texts(rows: list[TrainingRow]) -> set[tuple[str, str]]:
    return {(row.query, row.positive) for row in rows}


def test_every_data_set_is_in_the_sample_in_proportion_to_its_queries() -> None:
    """At 9856602 these were the first 16 rows: all of `a`."""
    dev, train = held_out(rows_of(a=600, b=300, c=100, d=2), 50, seed=3)
    found = Counter(row.dataset for row in dev)
    assert found["d"] == 1 and len(dev) == 50 and len(train) == 952
    assert abs(found["a"] - 30) <= 1 and abs(found["b"] - 15) <= 1 and abs(found["c"] - 5) <= 1


def test_no_query_is_in_both_parts_however_it_is_written_and_whatever_set_it_stands_in() -> None:
    """Each query stands six times: as another positive, in another set, with other white space, composed or not."""
    rows = []
    for i in range(80):
        query = f"où est le café numéro {i} ?"
        other = unicodedata.normalize("NFD", query).replace(" ", "\t ") + "\n"
        for copy, (dataset, text) in enumerate(
            [("a", query), ("a", other), ("b", query), ("b", other), ("c", query), ("c", other)]
        ):
            rows.append(TrainingRow(f"{i}-{copy}", text, f"answer {copy} to {i}", ("no",), dataset))
    dev, train = held_out(rows, 5, seed=0)
    assert len(dev) == 5 == len(set(query_hashes(dev)))
    assert not set(query_hashes(dev)) & set(query_hashes(train))
    assert len(train) == 480 - 5 * 6, "all rows of a drawn query leave training"
    assert len(held_out(rows, 500, seed=0)[0]) == 8, "a tenth of 480 rows holds 8 queries of 6"


def test_the_sample_goes_by_seed_and_content_not_by_order_or_ids() -> None:
    rows = rows_of(a=90, b=60)
    mixed = [TrainingRow(f"new {i}", r.query, r.positive, r.negatives, r.dataset) for i, r in enumerate(rows)]
    random.Random(1).shuffle(mixed)
    first, second = held_out(rows, 12, seed=7), held_out(mixed, 12, seed=7)
    assert [row.query for row in first[0]] == [row.query for row in second[0]]
    assert texts(first[1]) == texts(second[1])
    assert [row for row in mixed if row in second[1]] == second[1], "training rows stay in their order"
    assert texts(held_out(rows, 12, seed=8)[0]) != texts(first[0])


def test_small_sets_give_at_most_a_tenth_of_their_rows_and_below_ten_none() -> None:
    assert [len(held_out(rows_of(a=size), 128, seed=0)[0]) for size in (0, 1, 9, 10, 19, 20, 32)] == [
        *(0, 0, 0, 1, 1, 2, 3)
    ]
    assert held_out(rows_of(a=40), 0, seed=0) == ([], rows_of(a=40))
    many = rows_of(**{f"set{i}": 4 for i in range(30)})
    dev, _ = held_out(many, 128, seed=0)
    assert len(dev) == 12 == len({row.dataset for row in dev}), "one of as many sets as there is room for"


def test_a_query_with_too_many_rows_is_passed_over_and_a_set_keeps_its_last_query() -> None:
    broad = [TrainingRow(f"x{i}", "broad question", f"answer {i}", ("no",), "a") for i in range(60)]
    dev, train = held_out([*broad, *rows_of(a=40, lonely=1)], 128, seed=0)
    assert "broad question" not in {row.query for row in dev} and len(dev) == 10
    assert "lonely" in {row.dataset for row in train}


def test_a_query_that_another_stage_trained_on_is_not_drawn() -> None:
    rows = rows_of(synthetic=100, docstrings=100)
    _, weak = held_out([row for row in rows if row.dataset == "synthetic"], 8, seed=0)
    dev, _ = held_out(rows, 16, seed=0, trained=set(query_hashes(weak)))
    assert Counter(row.dataset for row in dev) == {"synthetic": 8, "docstrings": 8}
    assert not set(query_hashes(dev)) & set(query_hashes(weak))
