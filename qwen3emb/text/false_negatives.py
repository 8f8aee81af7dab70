"""False negatives: those that answer the query, are the query itself, or are repeated. Compared by `content_id`."""

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
    "left_out_sentence",
    "read_answers",
    "true_negatives",
    "write_answers",
]

ANSWERS = "answers"
"""Folder with the positives of each query, by dataset: also those without a row (`max_rows`, `max_positives`, ...)."""

_SHARD = 1_000_000

Answers = dict[int, set[int]]
"""Content id of a query -> content ids of the texts that answer it."""

FALSE = ("negatives_that_are_positives", "negatives_that_are_the_query", "repeated_negatives")
"""Reasons for which a negative is left out, by their names in the metrics of the stages."""

SEARCHED = ("retrieval", "bitext")
"""Tasks whose positives answer their query in every dataset; a class of one dataset says nothing about another."""


def answers_of(pairs: Iterable[tuple[str, str]]) -> Answers:
    """The positives of each query, from (query, positive) pairs of texts."""
    answers: Answers = {}
    for query, positive in pairs:
        answers.setdefault(content_id(query), set()).add(content_id(positive))
    return answers


def true_negatives(
    query: str, negatives: Sequence[str], answers: Mapping[int, Collection[int]]
) -> tuple[list[int], Counter[str]]:
    """Find the negatives of a query that may be trained against. A text that is also a positive of it is a positive.

    Args:
        query: text of the query.
        negatives: texts of its negatives.
        answers: positives of the queries of all data, see `answers_of`.

    Returns:
        (indices of the true negatives, in their order; number of the others by reason, see `FALSE`).
    """
    if not negatives:
        return [], Counter()
    query_id = content_id(query)
    positives, seen = answers.get(query_id, ()), set[int]()
    kept, left_out = [], Counter[str]()
    for place, text in enumerate(negatives):
        number = content_id(text)
        tests = (number in positives, number == query_id, number in seen)
        if any(tests):
            left_out[FALSE[tests.index(True)]] += 1
        else:
            kept.append(place)
        seen.add(number)
    return kept, left_out


def left_out_sentence(left_out: Mapping[str, int]) -> str:
    """Counts of `true_negatives` as a phrase for the log; "" where nothing was left out."""
    positives, queries, repeated = (left_out.get(name, 0) for name in FALSE)
    if not positives + queries + repeated:
        return ""
    why = f"{positives} are positives of their query, {queries} the query itself, {repeated} repeated"
    return f"{positives + queries + repeated} negatives left out: {why}"


def write_answers(out: Storage, name: str, answers: Answers) -> None:
    """Write the positives of the queries of the dataset `name`."""
    queries = [query for query, positives in answers.items() for _ in positives]
    columns = [queries, [positive for positives in answers.values() for positive in positives]]
    out.write_parts(f"{ANSWERS}/{name}", pa.table(columns, schema=ANSWER), _SHARD)


def read_answers(out: Storage) -> Answers:
    """The positives of each query, from all datasets of the stage `labelled`; empty where an older version ran it."""
    return answers_in_table(out.read_table(ANSWERS, ANSWER))


def answers_in_table(table: pa.Table) -> Answers:
    """The positives of each query, from a table of the schema `records.ANSWER`."""
    answers: Answers = {}
    for query, positive in zip(table["query"].to_pylist(), table["positive"].to_pylist(), strict=True):
        answers.setdefault(query, set()).add(positive)
    return answers
