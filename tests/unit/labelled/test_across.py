"""What one set calls a positive is no negative in another, neither when sets are read nor when rows are mined."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3emb.core.records import TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.labelled.across import drop_false_negatives, shared_answers
from qwen3emb.mining.rules import MinePair, mining_plan, settle_negatives
from qwen3emb.text.false_negatives import FALSE, answers_of, read_answers, write_answers
from qwen3emb.text.identity import content_id


def row(
    dataset: str, query: str, positive: str, negatives: list[str], scores: list[float] | None = None
) -> dict[str, Any]:
    texts = {"id": f"{dataset}/1", "query": query, "positive": positive, "negatives": negatives, "dataset": dataset}
    return {**texts, "positive_score": None, "negative_scores": scores or [], "grade": None}


def test_positives_of_other_sets_are_taken_out_of_the_files(tmp_path: Path) -> None:
    out = Storage(str(tmp_path))
    rows = {
        "a": [row("a", "q", "x", ["y ", "n"]), row("a", "only here", "x", ["y"])],
        "b": [row("b", "q", "y", ["x", "m"])],
        "c": [row("c", "another", "z", ["x"])],
    }
    for name, found in rows.items():
        out.write_parts(f"rows/{name}", pa.Table.from_pylist(found, schema=TRAINING_ROW), 1)
        write_answers(out, name, answers_of((one["query"], one["positive"]) for one in found))
    answers = shared_answers(out, list(rows))
    assert answers == {content_id("q"): {content_id("x"), content_id("y")}}
    assert [drop_false_negatives(out.uri, name, answers) for name in rows] == [{FALSE[0]: 1}, {FALSE[0]: 1}, {}]
    left = [one["negatives"] for name in rows for one in out.read_table(f"rows/{name}").to_pylist()]
    assert left == [["n"], ["y"], ["m"], ["x"]]
    assert out.read_table("rows/a").schema == TRAINING_ROW
    assert read_answers(out) == answers_of((one["query"], one["positive"]) for found in rows.values() for one in found)
    assert shared_answers(out, ["a"]) == {} and read_answers(out / "nothing") == {}


def test_classes_of_one_set_say_nothing_about_another() -> None:
    rows = [
        row("search", "q", "x", ["y", "n"], [0.5, 0.25]),
        row("found", "q ", "y", ["x"]),
        row("colours", "q", "red", ["blue", "red ", "q"]),
        row("colours", "q", "blue", ["green", "red"]),
        row("moods", "q", "sad", ["red"]),
    ]
    answers = answers_of([("q", "x"), ("q", "y"), ("q", "sad")])
    assert settle_negatives(rows, answers, {"search", "found"}) == Counter({FALSE[0]: 5, FALSE[1]: 1})
    assert [one["negatives"] for one in rows] == [["n"], [], [], ["green"], ["red"]]
    assert rows[0]["negative_scores"] == [0.25]


def test_what_is_known_to_answer_is_not_mined() -> None:
    pairs = [MinePair("1", "q", "a", "s"), MinePair("2", "other", "b", "s")]
    corpora = {"s": ["a", "b", "c", "q "]}
    known = answers_of([("q\n", "c "), ("q", "in no corpus")])
    searched = mining_plan(pairs, corpora, known=known)
    names = [searched.documents[i] for i in searched.searches["s"].excluded[0]]
    assert names == ["a", "c", "q "]
    assert searched.searches["s"].positives == mining_plan(pairs, corpora).searches["s"].positives
