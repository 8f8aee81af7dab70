"""Label 0 is no positive: known formats are read as they mean it, and what nobody can know is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwen3emb.cli import app
from qwen3emb.config_labelled import LabelledSetConfig
from qwen3emb.data.labelled import LabelledRow, read_labelled
from qwen3emb.data.rows import Reject
from qwen3emb.errors import UserError


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def read(path: Path, **settings: Any) -> tuple[list[LabelledRow], list[Reject]]:
    cfg = LabelledSetConfig.model_validate({"path": str(path), **settings})
    found = list(read_labelled("s", cfg, 0))
    return [r for r in found if isinstance(r, LabelledRow)], [r for r in found if isinstance(r, Reject)]


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
