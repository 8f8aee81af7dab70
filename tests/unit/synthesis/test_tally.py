"""The card of a synthesis counts what is there, and its costs add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qwen3emb.core.card import CARD
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.gates import drop_repeated
from qwen3emb.synthesis.tally import result


def test_the_card_counts_what_is_there_and_says_what_it_cost(written_stage: Callable[..., Storage]) -> None:
    out = written_stage()
    drop_repeated(out, 1.0)
    metrics = {"pairs_written": 5, "pairs_per_engine_s": 0.5, "prompt_tokens": 1000, "generated_tokens": 100}
    counted = result(5, out, metrics | {"prefix_cache_hit_rate": 0.5})
    assert (counted.rows_in, counted.rows_out, counted.rejected) == (5, 3, {"duplicate_query": 2})
    card = out.read_json(CARD)
    assert (card["asked"], card["pairs"], card["rejected"]) == (5, 3, {"duplicate_query": 2})
    assert sum(card["query_words"].values()) == 3 and card["query_words"]["0-5"] == 2
    assert card["pairs_by_question_type"] == {"keywords": 3}
    assert card["per_1000_pairs"] == {"prompt_tokens": 200000, "generated_tokens": 20000, "engine_seconds": 2000.0}
    assert card["engine_hours_for_1000000_pairs"] == 555.6
    assert "per_1000_pairs" not in _without_a_run(out)


def _without_a_run(out: Storage) -> dict[str, Any]:
    result(5, out, {})
    counted: dict[str, Any] = out.read_json(CARD)
    return counted
