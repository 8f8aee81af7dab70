"""STS: what is asked, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qwen3emb.synthesis.tasks.item import SynthesisItem
from qwen3emb.synthesis.tasks.sts import parse_rewrites

ItemOf = Callable[..., tuple[SynthesisItem, Any]]


def rewrites(
    *scores: float, texts: tuple[str, str, str] = ("No ferry on Sundays.", "Ferries in summer.", "Oak")
) -> str:
    names = ("close", "partial", "distant")
    return json.dumps({n: {"text": t, "score": s} for n, t, s in zip(names, texts, scores, strict=True)})


def test_sts_gives_three_graded_pairs_of_one_row(item_of: ItemOf) -> None:
    item, task = item_of("sts", gates={"language": False, "length_tolerance": None})
    call = task.call(item)
    assert task.read(item, call.name, rewrites(5, 2.5, 0)) is None
    pairs = task.pairs(item)
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
