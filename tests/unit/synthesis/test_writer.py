"""Several queries of one passage are rows of their own, by different personas, and one query is as it always was."""

from __future__ import annotations

from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.synthesis.tasks.item import SynthesisItem
from qwen3emb.synthesis.writer import QueryWriter

PASSAGE: dict[str, Any] = {"id": "p", "text": "text", "title": "", "language": "en", "source": "s"}
PEOPLE = [f"person {i}" for i in range(6)]


def writer(count: int) -> QueryWriter:
    cfg = SynthesizeConfig(
        personas="-", candidates=2, queries_per_passage=count, words={"5-10": 1.0, "10-20": 1.0, "20-40": 1.0}
    )
    return QueryWriter(None, cfg, seed=3)  # type: ignore[arg-type]  # no engine is asked


def rows(count: int, people: list[str] = PEOPLE, **passage: Any) -> list[SynthesisItem]:
    return writer(count).rows(PASSAGE | passage, "text", people)


def test_each_query_has_candidates_and_draws_of_its_own() -> None:
    found = rows(3)
    assert [row.key for row in found] == ["p", "p#1", "p#2"]
    assert [row.candidates for row in found] == [PEOPLE[0::3], PEOPLE[1::3], PEOPLE[2::3]]
    assert len({row.requirement.words for row in rows(12)}) > 1
    assert found[0].requirement == rows(1)[0].requirement


def test_fewer_personas_than_queries_are_shared() -> None:
    assert [row.candidates for row in rows(3, ["only one"])] == [["only one"]] * 3


def test_a_bad_passage_is_rejected_once_for_each_query() -> None:
    pairs, rejects = writer(2).tables(rows(2, problem="empty_passage: nothing"))
    assert len(pairs) == 0
    assert rejects["id"].to_pylist() == ["p", "p#1"]
