"""Several queries of one passage are items of their own, by different personas, and one query is as it always was."""

from __future__ import annotations

from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.synthesis.tasks.item import SynthesisItem
from qwen3emb.synthesis.writer import QueryWriter

PASSAGE: dict[str, Any] = {"id": "p", "text": "text", "title": "", "language": "en", "source": "s"}
PERSONAS = [f"person {i}" for i in range(6)]


def writer(count: int) -> QueryWriter:
    cfg = SynthesizeConfig(
        personas="-", candidates=2, queries_per_passage=count, words={"5-10": 1.0, "10-20": 1.0, "20-40": 1.0}
    )
    return QueryWriter(None, cfg, seed=3)  # type: ignore[arg-type]  # no engine is asked


def items(count: int, personas: list[str] = PERSONAS, **passage: Any) -> list[SynthesisItem]:
    return writer(count).items(PASSAGE | passage, "text", personas)


def test_each_query_has_personas_and_draws_of_its_own() -> None:
    three = items(3)
    assert [item.key for item in three] == ["p", "p#1", "p#2"]
    assert [item.personas for item in three] == [PERSONAS[0::3], PERSONAS[1::3], PERSONAS[2::3]]
    assert len({item.requirement.words for item in items(12)}) > 1
    assert three[0].requirement == items(1)[0].requirement


def test_fewer_personas_than_queries_are_shared() -> None:
    assert [item.personas for item in items(3, ["only one"])] == [["only one"]] * 3


def test_a_bad_passage_is_rejected_once_for_each_query() -> None:
    pairs, rejects = writer(2).tables(items(2, problem="empty_passage: nothing"))
    assert len(pairs) == 0
    assert rejects["id"].to_pylist() == ["p", "p#1"]
