"""Metrics by language, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3emb.config.run import load_config
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.by_language import Query, by_language, few_rows_line, language_table, languages_of, trained_on
from qwen3emb.text.retrieval_set import RetrievalSet, read_beir, read_retrieval_set, write_retrieval_set

QUERIES = {
    "a": Query("How many moons does the planet Jupiter have?"),
    "b": Query("Which river flows through the city of Dresden?"),
    "c": Query("Welcher Fluss fließt durch die Stadt Dresden?"),
    "d": Query("¿Qué río pasa por la ciudad de Sevilla?"),
}
TRAINING = [Query("When was the first telegraph line opened?")] * 3
TRAINING.append(Query("Wann wurde die erste Telegrafenlinie eröffnet?"))


def of(**values: float) -> dict[str, dict[str, float]]:
    """nDCG@10 by query; MRR@10 is half of it."""
    return {query: {"ndcg@10": value, "mrr@10": value / 2} for query, value in values.items()}


def test_each_language_has_its_own_means_and_its_training_rows() -> None:
    found = by_language(QUERIES, TRAINING, {"m": of(a=1.0, b=0.5, c=0.25), "n": of(d=0.125)})
    assert found == {
        "en": {
            "queries": 2,
            "training_rows": 3,
            "ndcg@10": {"m": 0.75, "n": None},
            "mrr@10": {"m": 0.375, "n": None},
        },
        "de": {
            "queries": 1,
            "training_rows": 1,
            "ndcg@10": {"m": 0.25, "n": None},
            "mrr@10": {"m": 0.125, "n": None},
        },
        "es": {
            "queries": 1,
            "training_rows": 0,
            "ndcg@10": {"m": None, "n": 0.125},
            "mrr@10": {"m": None, "n": 0.0625},
        },
    }


def test_what_the_data_says_wins_over_what_the_text_looks_like() -> None:
    asked = [
        Query("How many moons does the planet Jupiter have?", "sw"),
        Query("no telling", "zh-Hans"),
        Query("Which river flows through the city of Dresden?", "und"),
    ]
    assert languages_of(asked) == ["sw", "zh", "en"]
    found = by_language({"a": asked[0]}, [asked[0], asked[2], asked[0]], {})
    assert found == {"sw": {"queries": 1, "training_rows": 2}}


def test_of_very_many_training_rows_every_nth_counts_n_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3emb.evaluation.by_language._MAX_IDENTIFIED", 2)
    training = [TRAINING[0], TRAINING[3], TRAINING[3], TRAINING[3], Query("x", "en")]  # looked at: the first and third
    found = by_language({"a": QUERIES["a"], "c": QUERIES["c"]}, training, {})
    assert {language: row["training_rows"] for language, row in found.items()} == {"en": 2 + 1, "de": 2}


def test_languages_with_few_training_rows_are_named() -> None:
    found = by_language(QUERIES, TRAINING, {"m": of(a=1.0, b=0.5)})
    assert few_rows_line(found, 2) == "fewer than 2 training rows (evaluate.few_rows): de (1), es (0)"
    assert few_rows_line(found, 0) == ""
    table = language_table(found, 2)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [str(column.header) for column in table.columns] == ["language", "queries", "training rows", "m"]
    assert rows == [("en", "2", "3", "0.750"), ("de", "1", "1", "-"), ("es", "1", "0", "-")]
    assert table.caption == few_rows_line(found, 2)


DATASETS = {"docstrings", "synthetic", "synthetic_sts", "mine"}


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        ([], set()),
        (["supervised.synthetic=false"], {"synthetic", "synthetic_sts"}),
        (["supervised.datasets={synthetic: {weight: 0}}"], {"synthetic"}),
        (["labelled.sets.mine.weight=0"], {"mine"}),
        (["labelled.sets.mine.weight=0", "supervised.datasets={mine: {hard_negatives: 1}}"], {"mine"}),
        (["labelled.sets.mine.weight=0", "supervised.datasets={mine: {weight: 1}}"], set()),
    ],
)
def test_rows_that_are_not_trained_on_do_not_count(run_file: Path, overrides: list[str], left_out: set[str]) -> None:
    cfg = load_config(run_file, ["labelled={sets: {mine: {path: pairs.jsonl}}}", *overrides])
    assert {dataset for dataset in DATASETS if not trained_on(cfg, dataset)} == left_out


def test_a_retrieval_set_keeps_the_languages_that_are_said(tmp_path: Path) -> None:
    data = RetrievalSet({"a": "x", "b": "y"}, {"d": ("", "z")}, {"a": {"d": 1}, "b": {"d": 1}}, {"b": "de"})
    write_retrieval_set(Storage(str(tmp_path)), data)
    assert read_retrieval_set(Storage(str(tmp_path))) == data


def test_a_beir_folder_may_say_the_language_of_a_query(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\na\td\t1\nb\td\t1\n")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "z"}\n')
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y", "language": "de"}\n{"_id": "c", "text": "unjudged"}\n'
    )
    assert read_beir(Storage(str(tmp_path)), "test").languages == {"b": "de"}
