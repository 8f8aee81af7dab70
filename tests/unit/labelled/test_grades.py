"""Label 0 is no positive: known formats are read as they mean it, and what nobody can know is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwen3emb.cli.main import app
from qwen3emb.core.errors import UserError
from tests.unit.labelled.labelled_datasets import read, written


def nli(label: object, field: str = "label") -> dict[str, Any]:
    return {"premise": f"p {label}", "hypothesis": f"h {label}", field: label}


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def pair(label: object, field: str = "label") -> dict[str, Any]:
    return {"sentence1": f"a {label}", "sentence2": f"b {label}", field: label}


KNOWN: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "ms-swift": (
        [{"query": f"q{label}", "response": f"r{label}", "label": label} for label in (1.0, 0.0, 1, 0)],
        ["r1.0", "r1"],
    ),
    "ms-swift, messages": (
        [
            {"messages": chat("a"), "positive_messages": [chat("yes")], "label": 1},
            {"messages": chat("a"), "positive_messages": [chat("no")], "label": 0.0},
        ],
        ["yes"],
    ),
    "NLI": ([nli(label) for label in (0, 1, 2, -1, 0.0)], ["h 0", "h 0.0"]),
    "NLI in a table": ([nli(label) for label in ("0", "1", "2")], ["h 0"]),
    "NLI in words": ([nli(w) for w in ("entailment", "Neutral", "contradiction", "-")], ["h entailment"]),
    "SNLI's own files": ([pair(w, "gold_label") for w in ("contradiction", "entailment", "-")], ["b entailment"]),
    "RTE": ([pair(w) for w in ("not_entailment", "entailment")], ["b entailment"]),
    "all are positives": ([pair(1), pair(1) | {"sentence1": "c"}], ["b 1", "b 1"]),
    "no grade at all": ([pair(None), pair("")], ["b None", "b "]),
}


KNOWN |= {
    "words in any pair": (
        [
            pair(w)
            for w in ("not_equivalent", "equivalent", "Not Entailment", "irrelevant", "duplicate", "not duplicate")
        ],
        ["b equivalent", "b duplicate"],
    ),
    "label_text": ([pair("not equivalent", "label_text"), pair("equivalent", "label_text")], ["b equivalent"]),
    "SICK": ([pair(w, "entailment_judgment") for w in ("ENTAILMENT", "NEUTRAL")], ["b ENTAILMENT"]),
    "NLI with a constant score": ([nli(n) | {"score": 1} for n in (2, 0)], ["h 0"]),
    "two labels": ([nli(0) | {"gold_label": "neutral"}, nli(0) | {"gold_label": "entailment"}], ["h 0"]),
    "NLI beside negatives": ([nli(n) | {"negative": "n"} for n in (1, 0)], ["h 0"]),
    "ms-swift with a score": ([{"query": "q", "response": f"{n}", "label": n, "score": 1} for n in (0, 1)], ["1"]),
    "Label": ([nli(n, "Label") for n in (2, 0)], ["h 0"]),
}


@pytest.mark.parametrize("form", KNOWN)
def test_a_known_format_says_what_its_labels_mean(tmp_path: Path, form: str) -> None:
    records, positives = KNOWN[form]
    rows, rejects = read(written(tmp_path, records))
    assert [row.positive for row in rows] == [text.strip() for text in positives]
    assert [reject.code for reject in rejects] == ["no_positive"] * (len(records) - len(positives))


UNKNOWN: dict[str, list[dict[str, Any]]] = {
    "pairs": [pair(1), pair(0)],
    "zero first": [pair(0), pair(1)],
    "only zeros": [pair(0)],
    "graded": [pair(4.5, "score"), pair(1.0, "score")],
    "some without": [pair(1), pair(None)],
    "similarity": [pair(0.0, "similarity")],
    "is_duplicate": [pair(1, "is_duplicate"), pair(0, "is_duplicate")],
    "graded ms-swift": [{"query": "q", "response": "r", "label": label} for label in (1.0, 0.5)],
    "NLI with other numbers": [nli(0), nli(3), nli(4)],
    "beside negatives": [{"query": "q", "positive": "p", "negative": "n", "label": 0}],
    "a list of positives": [{"query": "q", "pos": ["p"], "label": label} for label in (1, 0)],
}

NAMES = [
    *("Label", "LABEL", "labels", "rating", "target", "is_relevant", "relevant", "quality", "gold", "judgement"),
    *("judgment", "is_match", "equivalent", "Is_Duplicate", "isDuplicate", "relevance", "Similarity Score"),
]
UNKNOWN |= {f"{name} is 0": [pair(1, name), pair(0, name)] for name in NAMES}
UNKNOWN |= {f"{name} is 0 of a response": [{"query": "q", "response": "r", name: 0}] for name in (*NAMES[:1], "score")}
UNKNOWN |= {
    "booleans": [pair(True, "is_duplicate"), pair(False, "is_duplicate")],
    "booleans as text": [pair("yes", "is_match"), pair("no", "is_match")],
    "one label hides another": [pair(1, "score") | {"label": 0}],
    "labels that contradict": [pair(1) | {"gold_label": 0}],
    "is_duplicate beside negatives": [{"query": "q", "positive": "p", "negative": "n", "is_duplicate": 0}],
    "tevatron": [{"query": "q", "positive_passages": [{"text": "p"}], "negative_passages": [], "label": 0}],
    "tevatron with negatives": [
        {"query": "q", "positive_passages": [{"text": "p"}], "negative_passages": [{"text": "n"}], "label": 0}
    ],
}


@pytest.mark.parametrize("task", ["retrieval", "bitext"])
@pytest.mark.parametrize("form", UNKNOWN)
def test_grades_that_say_not_what_is_a_positive_are_refused(tmp_path: Path, form: str, task: str) -> None:
    path = written(tmp_path, UNKNOWN[form])
    with pytest.raises(UserError, match=r"row \d.*labelled\.sets\.s\.min_grade") as caught:
        read(path, task=task)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_threshold_or_the_task_sts_settles_it(tmp_path: Path) -> None:
    path = written(tmp_path, [pair(1), pair(0), pair(0.5)])
    assert [row.positive for row in read(path, min_grade=0.5)[0]] == ["b 1", "b 0.5"]
    assert [row.grade for row in read(path, task="sts")[0]] == [1.0, 0.0, 0.5]
    assert [row.positive for row in read(written(tmp_path, [nli(0), nli(2)]), min_grade=1)[0]] == ["h 2"]
    rows, rejects = read(written(tmp_path, [nli(0), nli("neutral")]), task="sts")
    assert rows == [] and [reject.code for reject in rejects] == ["bad_grade"] * 2, "classes are no grades"


def test_scores_beside_negatives_are_margins_and_stay_unread(tmp_path: Path) -> None:
    records = [{"query": "q", "positive": "p", "negative": "n", "score": s} for s in (3.5, -1.0, [1, 2])]
    assert len(read(written(tmp_path, records))[0]) == 3


def test_describe_refuses_and_takes_the_threshold(tmp_path: Path) -> None:
    path = str(written(tmp_path, UNKNOWN["pairs"]))
    refused = CliRunner().invoke(app, ["data", "describe", path])
    assert refused.exit_code == 2 and "--min-grade" in refused.output
    taken = CliRunner().invoke(app, ["data", "describe", path, "--min-grade", "1", "--json"])
    found = json.loads(taken.output)
    assert (taken.exit_code, found["rows"], found["rejected"]) == (0, 1, {"below_min_grade": 1})


@pytest.mark.parametrize("empty", [None, "", " ", "absent"])
@pytest.mark.parametrize("first", [True, False])
def test_a_pair_of_nli_or_swift_without_its_label_is_none(tmp_path: Path, empty: str | None, first: bool) -> None:
    swift = [{"query": "q", "response": f"r{n}", "rejected_response": "x", "label": 1} for n in range(2)]
    words = [pair("entailment"), pair("entailment") | {"sentence1": "c"}]
    for records in ([nli(0), nli("entailment")], swift, [r | {"score": 1} for r in swift], words):
        at = 0 if first else 1
        records[at] = {k: v for k, v in records[at].items() if k != "label"}
        records[at] |= {} if empty == "absent" else {"label": empty}
        rows, rejects = read(written(tmp_path, records))
        assert ([r.id for r in rows], [r.code for r in rejects]) == ([f"s/{2 - at}"], ["missing_label"])


def test_a_set_without_any_label_is_of_positives_but_not_where_nli_has_an_empty_one(tmp_path: Path) -> None:
    swift = [{"query": f"q{n}", "response": "r", "rejected_response": "x", "label": None} for n in range(3)]
    assert [r.id for r in read(written(tmp_path, swift))[0]] == ["s/1", "s/2", "s/3"]
    bare = [{"premise": f"p{n}", "hypothesis": "h"} for n in range(3)]
    assert [r.id for r in read(written(tmp_path, bare))[0]] == ["s/1", "s/2", "s/3"]
    rows, rejects = read(written(tmp_path, [nli(None), nli("")]))
    assert rows == [] and [r.code for r in rejects] == ["missing_label"] * 2


def test_a_named_grade_is_the_one_that_counts(tmp_path: Path) -> None:
    response = [{"query": "q", "response": f"r{s}", "score": s} for s in (0, 5)]
    assert [r.positive for r in read(written(tmp_path, response), columns={"grade": "score"}, min_grade=1)[0]] == ["r5"]
    assert [r.positive for r in read(written(tmp_path, response), min_grade=1)[0]] == ["r5"]
    with pytest.raises(UserError, match="min_grade"):
        read(written(tmp_path, response), columns={"grade": "score"})
    both = [pair(s, "score") | {"label": 1 - s} for s in (0, 1)]
    rows, _ = read(written(tmp_path, both), columns={"grade": "label"}, min_grade=1)
    assert [r.positive for r in rows] == ["b 0"]


def test_a_threshold_is_for_numbers_also_beside_negatives(tmp_path: Path) -> None:
    records = [{"query": "q", "positive": f"p{s}", "negative": "n", "score": s} for s in (5, 1)]
    rows, rejects = read(written(tmp_path, records), min_grade=3)
    assert [r.positive for r in rows] == ["p5"] and [r.code for r in rejects] == ["below_min_grade"]
    words = [pair("entailment") | {"score": 4}, pair("neutral") | {"score": 4}, pair("entailment")]
    rows, rejects = read(written(tmp_path, words), min_grade=3)
    assert [r.id for r in rows] == ["s/1", "s/3"] and [r.code for r in rejects] == ["no_positive"]


@pytest.mark.parametrize("task", ["retrieval", "sts"])
def test_a_huge_number_is_no_grade(tmp_path: Path, task: str) -> None:
    rows, rejects = read(written(tmp_path, [pair(10**400, "score")]), task=task)
    assert rows == [] and [r.code for r in rejects] == ["bad_grade"]


def test_describe_shows_the_first_reject_of_a_set_without_rows(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["data", "describe", str(written(tmp_path, [nli("neutral"), nli("-")]))])
    assert refused.exit_code == 2
    assert "row 1" in refused.output and "neutral" in refused.output and "'no_positive': 2" in refused.output
