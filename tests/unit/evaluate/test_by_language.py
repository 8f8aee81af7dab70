"""Metrics by language, against figures worked out by hand."""

from __future__ import annotations

from qwen3emb.evaluate.by_language import by_language, language_lines

QUERIES = {
    "a": "How many moons does the planet Jupiter have?",
    "b": "Which river flows through the city of Dresden?",
    "c": "Welcher Fluss fließt durch die Stadt Dresden?",
    "d": "¿Qué río pasa por la ciudad de Sevilla?",
}
TRAINING = ["When was the first telegraph line opened?"] * 3 + ["Wann wurde die erste Telegrafenlinie eröffnet?"]


def test_each_language_has_its_own_mean_and_its_training_rows() -> None:
    found = by_language(QUERIES, TRAINING, {"m": {"a": 1.0, "b": 0.5, "c": 0.25}, "n": {"d": 0.125}})
    assert found == {
        "en": {"queries": 2, "training_rows": 3, "ndcg@10": {"m": 0.75, "n": None}},
        "de": {"queries": 1, "training_rows": 1, "ndcg@10": {"m": 0.25, "n": None}},
        "es": {"queries": 1, "training_rows": 0, "ndcg@10": {"m": None, "n": 0.125}},
    }


def test_languages_with_few_training_rows_are_named() -> None:
    lines = language_lines(by_language(QUERIES, TRAINING, {"m": {"a": 1.0, "b": 0.5}}), 2)
    assert lines[0] == "en: 2 queries, 3 training rows: ndcg@10 m 0.750"
    assert lines[-1] == "fewer than 2 training rows (evaluate.few_rows): de, es"
    assert len(language_lines(by_language(QUERIES, TRAINING, {}), 0)) == 3
