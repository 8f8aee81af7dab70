"""Each gate refuses what it is for, lets good queries pass, and can be switched off."""

from __future__ import annotations

from typing import Any

import pytest

from qwen3emb.config.data import GatesConfig
from qwen3emb.synthesis.gates import Gates, duplicate_queries, word_count
from qwen3emb.synthesis.tasks.item import Requirement

PASSAGE = "The level of the river rose to nine metres in August and the old town was flooded for two days."
ENGLISH = Requirement("5-10", "en", "English")


def problem(query: str, wanted: Requirement = ENGLISH, **settings: Any) -> str | None:
    found = Gates(GatesConfig(**settings)).problem(query, PASSAGE, wanted)
    return None if found is None else found.partition(":")[0]


BAD = {
    "wrong_length": "river",
    "copied_words": "the level of the river rose to nine metres in August",
    "refusal": "I'm sorry, but I cannot write a query about this",
    "placeholder": "how high did the river rise in [insert month here]",
    "wrong_language": "Wie hoch stieg der Fluss im August in der alten Stadt",
}


@pytest.mark.parametrize("code", BAD)
def test_each_gate_refuses_what_it_is_for(code: str) -> None:
    assert problem(BAD[code]) == code


SWITCHES: dict[str, dict[str, Any]] = {
    "wrong_length": {"length_tolerance": None},
    "copied_words": {"copied_share": None},
    "refusal": {"refusals": False, "length_tolerance": None},
    "placeholder": {"placeholders": False},
    "wrong_language": {"language": False},
}


@pytest.mark.parametrize("code", BAD)
def test_each_gate_can_be_switched_off(code: str) -> None:
    assert problem(BAD[code], **SWITCHES[code]) is None


@pytest.mark.parametrize(
    ("query", "language", "words"),
    [
        ("how high did the river rise that summer", "en", "5-10"),
        ("Wie hoch stieg der Fluss im August an", "de", "5-10"),
        ("八月の川の水位はどこまで上がりましたか", "ja", "5-20"),
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
