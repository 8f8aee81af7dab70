"""Each gate refuses what it is for, lets good queries pass, and can be switched off; what is dropped goes once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from qwen3emb.config.data import GatesConfig
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.gates import Gates, drop_overlapping, drop_repeated, duplicate_queries, word_count
from qwen3emb.synthesis.tasks.item import Requirement
from qwen3emb.text.decontamination import EvaluationNgrams

WrittenStage = Callable[..., Storage]

PASSAGE = "The level of the river rose to nine metres in August and the old town was flooded for two days."
ENGLISH = Requirement("5-10", "en", "English")


def problem(query: str, wanted: Requirement = ENGLISH, **settings: Any) -> str | None:
    found = Gates(GatesConfig(**settings)).problem(query, PASSAGE, wanted, "keywords")
    return None if found is None else found.partition(":")[0]


BAD = {
    "wrong_length": "river",
    "copied_words": "the level of the river rose to nine metres in August",
    "refusal": "I'm sorry, but I cannot write a query about this",
    "placeholder": "how high did the river rise in [insert month here]",
    "wrong_type": "how high did the river rise?",
    "wrong_language": "Wie hoch stieg der Fluss im August in der alten Stadt",
}


@pytest.mark.parametrize("code", BAD)
def test_each_gate_refuses_what_it_is_for(code: str) -> None:
    assert problem(BAD[code]) == code


SWITCHES: dict[str, dict[str, Any]] = {
    "wrong_length": {"length_tolerance": None},
    "copied_words": {"copied_share": None},
    "refusal": {"refusals": False, "length_tolerance": None, "question_type": False},
    "placeholder": {"placeholders": False},
    "wrong_type": {"question_type": False},
    "wrong_language": {"language": False},
}


@pytest.mark.parametrize("code", BAD)
def test_each_gate_can_be_switched_off(code: str) -> None:
    assert problem(BAD[code], **SWITCHES[code]) is None


@pytest.mark.parametrize(
    ("query", "language", "words"),
    [
        ("height of the river in that summer", "en", "5-10"),
        ("Wie hoch stieg der Fluss im August an", "de", "5-10"),
        ("八月の川の水位 洪水の被害", "ja", "5-20"),
        ("os.path.join examples for windows and linux", "en", "5-10"),
        ("anything goes in a language nobody identifies", "ii", "5-10"),
    ],
)
def test_good_queries_pass(query: str, language: str, words: str) -> None:
    assert problem(query, Requirement(words, language, language)) is None


def test_words_of_scripts_without_spaces_are_estimated() -> None:
    assert word_count("one two three") == 3
    assert 5 <= word_count("八月の川の水位はどこまで上がりましたか") <= 14


def test_repeated_queries_are_named_with_the_first_one() -> None:
    queries = [
        "How high did the river rise in August of that year?",
        "how high did  the river rise in august of that year?",
        "so how high did the river rise in August of that year?",
        "when was the old town flooded",
    ]
    ids = ["a", "b", "c", "d"]
    assert duplicate_queries(ids, queries, 1.0) == {"b": "duplicate_query: of a"}
    near = duplicate_queries(ids, queries, 0.6)
    assert near == {"b": "duplicate_query: of a", "c": "near_duplicate_query: of a"}
    assert duplicate_queries([], [], 0.9) == {}


def names(out: Storage, folder: str, column: str) -> list[str]:
    return out.read_table(folder).column(column).to_pylist()


def test_the_first_of_equal_queries_stays_and_a_second_call_changes_nothing(written_stage: WrittenStage) -> None:
    out = written_stage()
    assert drop_repeated(out, 1.0) == 2
    assert names(out, "pairs", "document_id") == ["d0", "d1", "d3"]
    assert names(out, "rejects", "id") == ["d2", "d4"]
    assert all(reason.startswith("duplicate_query: of d") for reason in names(out, "rejects", "reason"))
    before = {name: out.read_bytes(name) for name in out.names()}
    assert drop_repeated(out, 1.0) == 0
    assert {name: out.read_bytes(name) for name in out.names()} == before


def test_a_kill_between_rejects_and_pairs_leaves_no_row_twice(written_stage: WrittenStage) -> None:
    out = written_stage()
    killed = out.read_table("pairs/1.parquet")
    drop_repeated(out, 1.0)
    out.write_table("pairs/1.parquet", killed)  # the rejects were written, the pairs not yet
    assert drop_repeated(out, 1.0) == 1
    assert sorted([*names(out, "pairs", "document_id"), *names(out, "rejects", "id")]) == [f"d{i}" for i in range(5)]


def test_rows_that_hold_evaluation_texts_go_whole(
    written_stage: WrittenStage, pair: Callable[[int, str], dict[str, Any]]
) -> None:
    asked = "which function of this module reads the whole file into one string of text"
    out = written_stage(["how to open a file", f"Well, {asked}?"], ["a third", "a fourth"])
    rows = [pair(9, "x") | {"id": f"d9#1{kind}", "dataset": "synthetic_sts"} for kind in ("", "/partial", "/distant")]
    rows = [{**row, "id": row["id"] if "/" in row["id"] else f"{row['id']}/same"} for row in rows]
    rows[1]["document"] = f"It is asked {asked} again and again."
    out.write_table("pairs/2.parquet", pa.Table.from_pylist(rows, schema=PAIR))
    out.write_table("rejects/2.parquet", pa.Table.from_pylist([], schema=REJECT))
    evaluation = EvaluationNgrams(["heldout query 7", "dev document 1"], [asked, "something else " * 9], 0.5)
    assert drop_overlapping(out, evaluation) == 2
    assert names(out, "pairs", "id") == ["d0#0", "d2#0", "d3#0"]
    rejects = out.read_table("rejects").to_pylist()
    assert [row["id"] for row in rejects] == ["d1", "d9#1"]
    assert all(row["reason"].startswith("heldout_overlap: heldout query 7, 100% of its runs of 8") for row in rejects)
    assert drop_overlapping(out, evaluation) == 0
