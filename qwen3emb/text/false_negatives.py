"""Negatives that are none: answers of the query, the query itself, repeated ones. Texts are compared by content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa

from qwen3emb.core.records import ANSWER
from qwen3emb.core.storage import Storage
from qwen3emb.text.identity import content_id

__all__ = [
    "ANSWERS",
    "FALSE",
    "SEARCHED",
    "Answers",
    "answers_in_table",
    "answers_of",
    "read_answers",
    "told",
    "true_negatives",
    "write_answers",
]

ANSWERS = "answers"
"""Folder of what answers each query, by sets: also positives without a row (`max_rows`, `max_positives`, ...)."""

_SHARD = 1_000_000

Answers = dict[int, set[int]]
"""Content id of a query -> content ids of the texts that answer it."""

FALSE = ("negatives_that_are_positives", "negatives_that_are_the_query", "repeated_negatives")
"""Why a negative is left out, as the metrics of the stages call it."""

SEARCHED = ("retrieval", "bitext")
"""Tasks whose positives answer the query whatever set they are in; the classes of one set say nothing about another."""


def answers_of(pairs: Iterable[tuple[str, str]]) -> Answers:
    """What answers each query, of all (query, positive) pairs."""
    answers: Answers = {}
    for query, positive in pairs:
        answers.setdefault(content_id(query), set()).add(content_id(positive))
    return answers


def true_negatives(
    query: str, negatives: Sequence[str], answers: Mapping[int, Collection[int]]
) -> tuple[list[int], Counter[str]]:
    """(places of the negatives that may be trained against, in their order; how many others there are, by `FALSE`).

    A text that is both positive and negative of a query is a positive.

    Args:
        query: the query.
        negatives: its negatives.
        answers: of all data, see `answers_of`.
    """
    if not negatives:
        return [], Counter()
    own = content_id(query)
    positives, seen = answers.get(own, ()), set[int]()
    kept, left_out = [], Counter[str]()
    for place, text in enumerate(negatives):
        number = content_id(text)
        tests = (number in positives, number == own, number in seen)
        if any(tests):
            left_out[FALSE[tests.index(True)]] += 1
        else:
            kept.append(place)
        seen.add(number)
    return kept, left_out


def told(left_out: Mapping[str, int]) -> str:
    """The counts as a sentence; "" where nothing was left out."""
    positives, queries, repeated = (left_out.get(name, 0) for name in FALSE)
    if not positives + queries + repeated:
        return ""
    why = f"{positives} are positives of their query, {queries} the query itself, {repeated} repeated"
    return f"{positives + queries + repeated} negatives left out: {why}"


def write_answers(out: Storage, name: str, answers: Answers) -> None:
    """Write what answers the queries of the set `name`."""
    queries = [query for query, positives in answers.items() for _ in positives]
    columns = [queries, [positive for positives in answers.values() for positive in positives]]
    out.write_parts(f"{ANSWERS}/{name}", pa.table(columns, schema=ANSWER), _SHARD)


def read_answers(out: Storage) -> Answers:
    """What answers each query, of all sets of the stage `labelled`; empty where an older one did not write it."""
    return answers_in_table(out.read_table(ANSWERS, ANSWER))


def answers_in_table(table: pa.Table) -> Answers:
    """What answers each query, of a table of the schema `records.ANSWER`."""
    answers: Answers = {}
    for query, positive in zip(table["query"].to_pylist(), table["positive"].to_pylist(), strict=True):
        answers.setdefault(query, set()).add(positive)
    return answers
