"""The end of a synthesis: repeated queries go to the rejects once, whatever was killed, and the card adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3emb.core.card import CARD
from qwen3emb.core.records import PAIR, REJECT
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.finish import drop_overlapping, drop_repeated, result
from qwen3emb.text.decontamination import EvaluationNgrams


def pair(number: int, query: str) -> dict[str, Any]:
    texts = {"query": query, "document": f"text {number}", "document_id": f"d{number}", "dataset": "synthetic"}
    kinds = {"language": "en", "persona": "a nurse", "question_type": "keywords", "difficulty": "phd"}
    return {"id": f"d{number}#0", **texts, **kinds, "words": "5-10", "score": None}


def stage(folder: Path, *blocks: list[str]) -> Storage:
    out, number = Storage(str(folder)), 0
    for block, queries in enumerate(blocks):
        rows = [pair(number + i, query) for i, query in enumerate(queries)]
        number += len(rows)
        out.write_table(f"pairs/{block}.parquet", pa.Table.from_pylist(rows, schema=PAIR))
        out.write_table(f"rejects/{block}.parquet", pa.Table.from_pylist([], schema=REJECT))
    return out


def names(out: Storage, folder: str, column: str) -> list[str]:
    return out.read_table(folder).column(column).to_pylist()


BLOCKS = (["how to open a file", "list of colours"], ["How to open  a file", "what is a socket"], ["list of colours"])


def test_the_first_of_equal_queries_stays_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    out = stage(tmp_path, *BLOCKS)
    assert drop_repeated(out, 1.0) == 2
    assert names(out, "pairs", "document_id") == ["d0", "d1", "d3"]
    assert names(out, "rejects", "id") == ["d2", "d4"]
    assert all(reason.startswith("duplicate_query: of d") for reason in names(out, "rejects", "reason"))
    before = {name: out.read_bytes(name) for name in out.names()}
    assert drop_repeated(out, 1.0) == 0
    assert {name: out.read_bytes(name) for name in out.names()} == before


def test_a_kill_between_rejects_and_pairs_leaves_no_row_twice(tmp_path: Path) -> None:
    out = stage(tmp_path, *BLOCKS)
    killed = out.read_table("pairs/1.parquet")
    drop_repeated(out, 1.0)
    out.write_table("pairs/1.parquet", killed)  # the rejects were written, the pairs not yet
    assert drop_repeated(out, 1.0) == 1
    assert sorted([*names(out, "pairs", "document_id"), *names(out, "rejects", "id")]) == [f"d{i}" for i in range(5)]


def test_rows_that_hold_evaluation_texts_go_whole(tmp_path: Path) -> None:
    asked = "which function of this module reads the whole file into one string of text"
    out = stage(tmp_path, ["how to open a file", f"Well, {asked}?"], ["a third", "a fourth"])
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


def test_the_card_counts_what_is_there_and_says_what_it_cost(tmp_path: Path) -> None:
    out = stage(tmp_path, *BLOCKS)
    drop_repeated(out, 1.0)
    metrics = {"pairs_written": 5, "pairs_per_engine_s": 0.5, "prompt_tokens": 1000, "generated_tokens": 100}
    found = result(5, out, metrics | {"prefix_cache_hit_rate": 0.5})
    assert (found.rows_in, found.rows_out, found.rejected) == (5, 3, {"duplicate_query": 2})
    card = out.read_json(CARD)
    assert (card["asked"], card["pairs"], card["rejected"]) == (5, 3, {"duplicate_query": 2})
    assert sum(card["query_words"].values()) == 3 and card["query_words"]["0-5"] == 2
    assert card["pairs_by_question_type"] == {"keywords": 3}
    assert card["per_1000_pairs"] == {"prompt_tokens": 200000, "generated_tokens": 20000, "engine_seconds": 2000.0}
    assert card["engine_hours_for_1000000_pairs"] == 555.6
    assert "per_1000_pairs" not in _without_a_run(out)


def _without_a_run(out: Storage) -> dict[str, Any]:
    result(5, out, {})
    found: dict[str, Any] = out.read_json(CARD)
    return found
