"""Classification: what is asked, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qwen3emb.synthesis.tasks.classification import parse_class, parse_new_task
from qwen3emb.synthesis.tasks.item import SynthesisItem

ItemOf = Callable[..., tuple[SynthesisItem, Any]]
TEXT = "The ferry does not run on Sundays. Dogs travel free of charge on all boats."
LABELS = ["travel", "sport", "cooking"]


def test_classification_with_a_label_set_takes_one_call_and_all_other_labels_as_negatives(item_of: ItemOf) -> None:
    item, classification = item_of("classification", label_sets={"subject": LABELS})
    call = classification.call(item)
    assert call.schema["properties"]["label"]["enum"] == LABELS
    assert classification.read(item, call.name, json.dumps({"label": "travel", "misleading_label": "sport"})) is None
    assert classification.call(item) is None
    [pair] = classification.pairs(item)
    assert pair["query"] == f"subject\n{TEXT}" and pair["document"] == "travel"
    assert pair["negatives"] == ["sport", "cooking"]


def test_labels_that_differ_in_form_only_are_one_label_and_no_negative_of_it(item_of: ItemOf) -> None:
    item, classification = item_of("classification", label_sets={"subject": ["caf\u00e9", "cafe\u0301", "bar", "bar "]})
    call = classification.call(item)
    assert classification.read(item, call.name, json.dumps({"label": "caf\u00e9", "misleading_label": "bar"})) is None
    assert classification.pairs(item)[0]["negatives"] == ["bar"]


def test_classification_without_label_sets_invents_the_task_and_writes_the_text(item_of: ItemOf) -> None:
    item, classification = item_of("classification", gates={"language": False})
    task = classification.call(item)
    assert "a sailor" in task.messages[-1]["content"]
    assert classification.read(item, task.name, json.dumps({"task": "What a sign is about", "labels": LABELS})) is None
    call = classification.call(item)
    text = {"text": "No boats leave the pier today.", "label": "travel", "misleading_label": "sport"}
    assert classification.read(item, call.name, json.dumps(text)) is None
    [pair] = classification.pairs(item)
    assert pair["query"] == "What a sign is about\nNo boats leave the pier today."


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"label": "opera", "misleading_label": "sport"}, "label_not_in_set"),
        ({"label": "sport", "misleading_label": "sport"}, "same_labels"),
        ({"label": "sport"}, "label_not_in_set"),
    ],
)
def test_classification_refuses(content: dict[str, str], code: str) -> None:
    assert str(parse_class(json.dumps(content), LABELS, written=False)).startswith(code)


def test_an_invented_task_needs_two_different_labels() -> None:
    for labels in (["a"], ["a", "A"], [], "a, b"):
        assert str(parse_new_task(json.dumps({"task": "t", "labels": labels}))).startswith("bad_task")
