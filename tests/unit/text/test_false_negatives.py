"""A text that answers a query is no negative of it, wherever the data say so."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.text.false_negatives import FALSE, answers_of, left_out_sentence, true_negatives
from tests.unit.labelled.labelled_datasets import read, written

texts = st.sampled_from(["a", "a ", " a", "A", "b", "b\nc", "b c", "caf\u00e9", "cafe\u0301", "d", ""])


def same(one: str, other: str) -> bool:
    return unicodedata.normalize("NFC", one).split() == unicodedata.normalize("NFC", other).split()


@given(st.lists(st.tuples(texts, texts)), texts, st.lists(texts))
def test_it_agrees_with_a_slow_comparison_of_all_texts(
    pairs: list[tuple[str, str]], query: str, negatives: list[str]
) -> None:
    kept, left_out = [], Counter[str]()
    for place, text in enumerate(negatives):
        if any(same(q, query) and same(p, text) for q, p in pairs):
            left_out[FALSE[0]] += 1
        elif same(text, query):
            left_out[FALSE[1]] += 1
        elif any(same(text, before) for before in negatives[:place]):
            left_out[FALSE[2]] += 1
        else:
            kept.append(place)
    assert true_negatives(query, negatives, answers_of(pairs)) == (kept, left_out)
    sentence = left_out_sentence(left_out)
    assert sentence.startswith(str(sum(left_out.values()))) if left_out else sentence == ""


def test_a_set_is_looked_through_as_a_whole(tmp_path: Path) -> None:
    records = [
        {"query": "capital of the island", "pos": ["Port Lume"], "neg": ["Old Town", "a goat"]},
        {"query": "capital  of the island", "pos": ["Old Town"], "neg": ["Port  Lume", "Capital of the island"]},
        {"query": "who runs it", "pos": ["The  widow."], "neg": ["The widow.\r\n", "who runs it ", "x", "x\n", "y"]},
        {"query": "caf\u00e9", "pos": ["p"], "neg": ["cafe\u0301"]},
    ]
    rows, rejects = read(written(tmp_path, records), max_negatives=2)
    assert [row.negatives for row in rows] == [("a goat",), ("Capital of the island",), ("x", "y"), ()]
    assert not rejects
    total = sum((Counter(row.left_out) for row in rows), Counter[str]())
    assert total == {FALSE[0]: 3, FALSE[1]: 2, FALSE[2]: 1}


def test_positives_that_have_no_row_of_their_own_count(tmp_path: Path) -> None:
    records = [
        {"query": "q", "pos": ["a", "b", "c"], "neg": ["n"]},
        {"query": "q", "pos": ["d"], "neg": ["c", "m"]},
    ]
    rows, _ = read(written(tmp_path, records), max_positives=1)
    assert [(row.positive, row.negatives) for row in rows] == [("a", ("n",)), ("d", ("m",))]


def test_a_text_of_two_classes_has_neither_as_its_negative(tmp_path: Path) -> None:
    records = [{"text": "t", "label": "x"}, {"text": "t ", "label": "y"}, {"text": "u", "label": "z"}]
    rows, _ = read(written(tmp_path, records), task="classification")
    assert [row.negatives for row in rows[:2]] == [("z",), ("z",)] and set(rows[2].negatives) == {"x", "y"}
