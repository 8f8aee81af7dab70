"""Which rows the trainings take, against figures counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qwen3emb.config.run import RunConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.text.identity import content_hash
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set
from qwen3emb.training.selection import check_stop, evaluated_queries, reranker_rows, without_queries
from qwen3emb.training.validation import query_hashes


def table_of(**sizes: int) -> pa.Table:
    """Rows of the datasets, each with a query and two negatives of its own."""
    rows = [
        {"id": f"{name}{i}", "query": f"{name} {i}?", "positive": f"{name} {i}", "dataset": name}
        | {"negatives": [f"{name} not {i}", f"{name} neither {i}"], "grade": 3.0 if name.endswith("sts") else None}
        for name, size in sizes.items()
        for i in range(size)
    ]
    return pa.Table.from_pylist(rows, schema=TRAINING_ROW)


def run(**sections: Any) -> RunConfig:
    models = dict.fromkeys(("generator", "base", "retrieval"), "a-model")
    minimal = {
        "name": "x",
        "storage": "here",
        "models": models,
        "corpus": {"sources": [{"kind": "jsonl", "path": "x.jsonl"}]},
        "supervised": {"steps": 1},
        "synthesize": {"personas": "p.jsonl"},
        "weak": {"steps": 1},
        "reranker": {"steps": 1},
    }
    return RunConfig.model_validate(minimal | sections)


def test_every_row_is_trained_on_or_counted() -> None:
    rows = table_of(docstrings=100, synthetic=100, synthetic_sts=7).to_pylist()
    rows[3]["negatives"] = []
    rows[4]["negatives"] = [" docstrings  4 "]  # its own positive
    table = pa.Table.from_pylist(rows, schema=TRAINING_ROW)
    chosen = reranker_rows(table, run(), "reranker", {content_hash("docstrings 9?"), content_hash("not there")})
    assert chosen.left_out == {"evaluated_query": 1, "other_task": 7, "no hard negatives": 2, "validation": 19}
    assert chosen.rows == 207 == len(chosen.train) + sum(chosen.left_out.values())
    assert len(chosen.dev) == 19 and {row.dataset for row in chosen.dev} == {"docstrings", "synthetic"}
    assert not {row.id for row in chosen.train} & {"docstrings3", "docstrings4", "docstrings9", "synthetic_sts0"}


def test_random_negatives_answer_nothing_and_come_behind_the_hard_ones() -> None:
    rows = table_of(docstrings=60, synthetic=3).to_pylist()
    rows[1]["query"] = rows[0]["query"]  # what answers one of them answers both
    table = pa.Table.from_pylist(rows, schema=TRAINING_ROW)
    plain = {row.id: row for row in reranker_rows(table, run(), "reranker", ()).train}
    section = {"steps": 1, "random_negatives": 4, "negatives": 8}
    found = reranker_rows(table, run(reranker=section, mine={"negatives": 8}), "reranker", ()).train
    assert [row.id for row in found] == list(plain)
    for row in found:
        hard, drawn = row.negatives[:2], row.negatives[2:]
        assert hard == plain[row.id].negatives and len(set(drawn)) == len(drawn)
        others = {r.positive for r in found if r.dataset == row.dataset and r.query != row.query}
        assert len(drawn) == min(4, len(others)), "as many as there are, where there are few"
        answers = {r.positive for r in found if r.query == row.query}
        assert not answers & set(drawn) and set(drawn) <= others
    assert len({row.negatives[2:] for row in found if row.dataset == "docstrings"}) > 30, "drawn for each row anew"
    again = reranker_rows(table, run(reranker=section, mine={"negatives": 8}), "reranker", ()).train
    assert again == found


def test_the_second_reranker_stage_validates_on_nothing_that_the_first_one_has_trained_on() -> None:
    table = table_of(docstrings=300, synthetic=300)
    cfg = run(reranker_weak={"steps": 1, "validation_queries": 10}, reranker={"steps": 1, "validation_queries": 40})
    weak, second = (reranker_rows(table, cfg, stage, ()) for stage in ("reranker_weak", "reranker"))
    assert weak.rows == 300 and len(weak.dev) == 10
    assert len(second.dev) == 40 and sum(row.dataset == "synthetic" for row in second.dev) == 10
    assert not set(query_hashes(second.dev)) & set(query_hashes([*weak.train, *second.train]))


def test_queries_of_the_dev_and_held_out_sets_leave_every_training(tmp_path: Path) -> None:
    corpus = Storage(str(tmp_path / "corpus"))
    inputs = {"corpus": corpus, "labelled": Storage(str(tmp_path / "labelled"))}
    write_retrieval_set(corpus / "dev", RetrievalSet({"q": "Café  au lait"}, {"d": ("", "text")}, {"q": {"d": 1}}))
    assert evaluated_queries(inputs) == {content_hash("Cafe\u0301 au lait")}
    write_retrieval_set(corpus / "heldout", RetrievalSet({"q": "docstrings 2?"}, {"d": ("", "t")}, {"q": {"d": 1}}))
    rows = reranker_rows(table_of(docstrings=5), run(), "reranker", ()).train
    assert [row.id for row in without_queries(rows, evaluated_queries(inputs))] == [
        *("docstrings0", "docstrings1", "docstrings3", "docstrings4")
    ]
    labelled = RetrievalSet({"q": "docstrings 0?"}, {"d": ("", "t")}, {"q": {"d": 1}})
    write_retrieval_set(inputs["labelled"] / "heldout/faq", labelled)
    assert [row.id for row in without_queries(rows, evaluated_queries(inputs))] == [
        *("docstrings1", "docstrings3", "docstrings4")
    ]


def test_an_early_stop_without_anything_to_validate_on_is_refused() -> None:
    check_stop(0, 0, "reranker", "validation_queries 128")
    check_stop(2, 1, "reranker", "validation_queries 128")
    with pytest.raises(UserError, match=r"reranker\.stop_after is 2, but no query is left"):
        check_stop(2, 0, "reranker", "validation_queries 128")
