"""Bitext, STS and classification rows: what is asked, what comes back, what is refused, and how they are trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.config.datasets import dataset_of, trained_as
from qwen3emb.synthesis.prompts import Configuration, configuration_chat, query_chat
from qwen3emb.synthesis.requirements import Requirement
from qwen3emb.synthesis.task_answers import parse_class, parse_new_task, parse_rewrites, parse_translation
from qwen3emb.synthesis.task_prompts import drawn_sentence
from qwen3emb.synthesis.task_rows import Call, SynthesisItem
from qwen3emb.synthesis.tasks import writers

TEXT = "The ferry does not run on Sundays. Dogs travel free of charge on all boats."
PASSAGE: dict[str, Any] = {"id": "p/1", "text": TEXT, "title": "", "language": "en", "source": "s"}
LABELS = ["travel", "sport", "cooking"]


def row(task: str, **config: Any) -> tuple[SynthesisItem, Any]:
    found = SynthesisItem(PASSAGE, TEXT, ["a sailor"], Requirement("5-10", "en", "English"), task=task, shown=TEXT)
    shared = {"personas": "-", "languages": {"English": 1.0, "German": 1.0}, "tasks": {task: 1.0}}
    cfg = SynthesizeConfig.model_validate(shared | config)
    return found, writers(cfg, seed=1)[task]


def asked(writer: Any, found: SynthesisItem) -> Call:
    call = writer.call(found)
    assert isinstance(call, Call)
    return call


def test_bitext_translates_a_sentence_into_another_language() -> None:
    found, writer = row("bitext")
    call = asked(writer, found)
    assert "German" in call.messages[-1]["content"]
    assert (
        writer.read(found, call.name, json.dumps({"translation": "Sonntags fährt die Fähre leider überhaupt nicht."}))
        is None
    )
    assert writer.call(found) is None
    [pair] = writer.pairs(found)
    assert pair["query"] in TEXT and pair["document"].startswith("Sonntags")
    assert (pair["language"], pair["dataset"]) == ("de", "synthetic_bitext")


def test_bitext_refuses_the_sentence_itself_and_other_languages() -> None:
    found, writer = row("bitext")
    asked(writer, found)
    sentence = drawn_sentence(TEXT, 0.0)
    assert parse_translation(json.dumps({"translation": sentence.upper()}), sentence).startswith("copied_source")
    english = json.dumps({"translation": "The boats which carry people and cars do not go there at weekends."})
    assert str(writer.read(found, "translation", english)).startswith("wrong_language")


def test_bitext_without_another_language_is_a_reject_that_is_not_asked_again() -> None:
    found, writer = row("bitext", languages={"en-GB": 1.0, "en-US": 1.0})
    problem = writer.call(found)
    found.fail(problem)
    assert problem.startswith("no_other_language") and found.settled


def rewrites(
    *scores: float, texts: tuple[str, str, str] = ("No ferry on Sundays.", "Ferries in summer.", "Oak")
) -> str:
    names = ("close", "partial", "distant")
    return json.dumps({n: {"text": t, "score": s} for n, t, s in zip(names, texts, scores, strict=True)})


def test_sts_gives_three_graded_pairs_of_one_row() -> None:
    found, writer = row("sts", gates={"language": False, "length_tolerance": None})
    call = asked(writer, found)
    assert writer.read(found, call.name, rewrites(5, 2.5, 0)) is None
    pairs = writer.pairs(found)
    assert [pair["grade"] for pair in pairs] == [5, 2.5, 0]
    assert [pair["id"] for pair in pairs] == ["p/1#0/close", "p/1#0/partial", "p/1#0/distant"]
    assert len({pair["query"] for pair in pairs}) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (rewrites(2, 3, 0), "sts_order"),
        (rewrites(3, 3, 0), "sts_order"),
        (rewrites(7, 3, 0), "bad_score"),
        (rewrites(5, 3, 0, texts=("Oak", "oak.", "Elm")), "same_rewrites"),
        (rewrites(5, 3, 0, texts=("the ferry", "Ash", "Elm")), "same_rewrites"),
        (rewrites(5, 3, 0, texts=("--", "Ash", "Elm")), "empty_text"),
        ("{}", "empty_text"),
        ("[]", "invalid_json"),
    ],
)
def test_sts_refuses(answer: str, code: str) -> None:
    assert str(parse_rewrites(answer, "The ferry.")).startswith(code)


def test_classification_with_a_label_set_takes_one_call_and_all_other_labels_as_negatives() -> None:
    found, writer = row("classification", label_sets={"subject": LABELS})
    call = asked(writer, found)
    assert call.schema["properties"]["label"]["enum"] == LABELS
    assert writer.read(found, call.name, json.dumps({"label": "travel", "misleading_label": "sport"})) is None
    assert writer.call(found) is None
    [pair] = writer.pairs(found)
    assert pair["query"] == f"subject\n{TEXT}" and pair["document"] == "travel"
    assert pair["negatives"] == ["sport", "cooking"]


def test_labels_that_differ_in_form_only_are_one_label_and_no_negative_of_it() -> None:
    found, writer = row("classification", label_sets={"subject": ["caf\u00e9", "cafe\u0301", "bar", "bar "]})
    call = asked(writer, found)
    assert writer.read(found, call.name, json.dumps({"label": "caf\u00e9", "misleading_label": "bar"})) is None
    assert writer.pairs(found)[0]["negatives"] == ["bar"]


def test_classification_without_label_sets_invents_the_task_and_writes_the_text() -> None:
    found, writer = row("classification", gates={"language": False})
    task = asked(writer, found)
    assert "a sailor" in task.messages[-1]["content"]
    assert writer.read(found, task.name, json.dumps({"task": "What a sign is about", "labels": LABELS})) is None
    call = asked(writer, found)
    text = {"text": "No boats leave the pier today.", "label": "travel", "misleading_label": "sport"}
    assert writer.read(found, call.name, json.dumps(text)) is None
    [pair] = writer.pairs(found)
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


def test_sentences_are_drawn_in_scripts_with_and_without_spaces() -> None:
    assert drawn_sentence("Kurz. Die Fähre fährt heute leider nicht mehr.", 0.0).startswith("Die Fähre")
    assert drawn_sentence("渡轮星期天不开。狗可以免费乘坐所有的船。", 0.99) == "狗可以免费乘坐所有的船。"
    assert len(drawn_sentence("word " * 500, 0.5).split()) == 40
    assert drawn_sentence("a" * 100_000, 0.5) == "a" * 400


def test_passage_first_gives_both_calls_and_all_queries_one_beginning() -> None:
    chats = [
        configuration_chat("passage_first", TEXT, ["a sailor", "a nurse"], 0.7),
        query_chat(
            "passage_first", TEXT, "a nurse", Configuration(1, "keywords", "phd"), Requirement("5-10", "en", "English")
        ),
        query_chat(
            "passage_first", TEXT, "a sailor", Configuration(0, "summary", "phd"), Requirement("10-20", "de", "German")
        ),
    ]
    assert chats[0][:3] == chats[1][:3] == chats[2][:3] and TEXT in chats[0][1]["content"]
    assert len({chat[3]["content"] for chat in chats}) == 3


def test_each_synthetic_set_is_trained_as_its_task() -> None:
    sets = trained_as({dataset_of(task) for task in ("retrieval", "sts", "classification")})
    assert {name: one.task for name, one in sets.items()} == {
        "synthetic_sts": "sts",
        "synthetic_classification": "classification",
    }
    assert sets["synthetic_classification"].hard_negatives


@pytest.mark.parametrize(
    "config",
    [
        {"tasks": {"bitext": 1.0}},
        {"tasks": {"retrieval": 0.0}},
        {"tasks": {"retrieval": -1.0, "sts": 2.0}},
        {"label_sets": {"x": ["a", "a"]}},
        {"label_sets": {"x": ["a"]}},
    ],
)
def test_impossible_configurations_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SynthesizeConfig(personas="-", **config)
