"""Bitext: what is asked, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from qwen3emb.synthesis.tasks.bitext import parse_translation
from qwen3emb.synthesis.tasks.item import SynthesisItem
from qwen3emb.synthesis.tasks.sentence import drawn_sentence

ItemOf = Callable[..., tuple[SynthesisItem, Any]]
TEXT = "The ferry does not run on Sundays. Dogs travel free of charge on all boats."


def test_bitext_translates_a_sentence_into_another_language(item_of: ItemOf) -> None:
    item, task = item_of("bitext")
    call = task.call(item)
    assert "German" in call.messages[-1]["content"]
    assert (
        task.read(item, call.name, json.dumps({"translation": "Sonntags fährt die Fähre leider überhaupt nicht."}))
        is None
    )
    assert task.call(item) is None
    [pair] = task.pairs(item)
    assert pair["query"] in TEXT and pair["document"].startswith("Sonntags")
    assert (pair["language"], pair["dataset"]) == ("de", "synthetic_bitext")


def test_bitext_refuses_the_sentence_itself_and_other_languages(item_of: ItemOf) -> None:
    item, task = item_of("bitext")
    task.call(item)
    sentence = drawn_sentence(TEXT, 0.0)
    assert parse_translation(json.dumps({"translation": sentence.upper()}), sentence).startswith("copied_source")
    english = json.dumps({"translation": "The boats which carry people and cars do not go there at weekends."})
    assert str(task.read(item, "translation", english)).startswith("wrong_language")


def test_bitext_without_another_language_is_a_reject_that_is_not_asked_again(item_of: ItemOf) -> None:
    item, task = item_of("bitext", languages={"en-GB": 1.0, "en-US": 1.0})
    problem = task.call(item)
    item.fail(problem)
    assert problem.startswith("no_other_language") and item.settled
