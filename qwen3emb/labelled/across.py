"""What the datasets say about each other: positives of one are no negatives in another, and a query that one holds out
is not trained on in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3emb.core.records import ANSWER, QUERIES, REJECT, TRAINING_ROW
from qwen3emb.core.rejects import Reject
from qwen3emb.core.storage import Storage
from qwen3emb.labelled.checks import Evaluation, decontaminated
from qwen3emb.labelled.holdout import SPLITS
from qwen3emb.labelled.row import LabelledRow
from qwen3emb.text.false_negatives import (
    ANSWERS,
    Answers,
    answers_in_table,
    true_negatives,
)

__all__ = ["drop_false_negatives", "drop_like_held_out", "held_out_queries", "lengths", "shared_answers"]


def shared_answers(out: Storage, names: Sequence[str]) -> Answers:
    """The positives of the queries that occur in more than one of the datasets `names`."""
    tables = [out.read_table(f"{ANSWERS}/{name}", ANSWER) for name in names]
    if len(tables) < 2:
        return {}
    query_ids = np.concatenate([np.unique(table["query"].to_numpy()) for table in tables])
    queries, counts = np.unique(query_ids, return_counts=True)
    common = queries[counts > 1]
    return answers_in_table(
        pa.concat_tables([t.filter(pa.array(np.isin(t["query"].to_numpy(), common))) for t in tables])
    )


def drop_false_negatives(uri: str, name: str, answers: Answers) -> Counter[str]:
    """Remove the false negatives from the written rows of one dataset, file by file.

    Args:
        uri: folder of the stage `labelled`.
        name: of the dataset.
        answers: positives of the queries of all datasets, see `shared_answers`.

    Returns:
        Number of negatives removed, by reason (`false_negatives.FALSE`).
    """
    out, left_out = Storage(uri), Counter[str]()
    for file in out.names(f"rows/{name}", ".parquet"):
        rows = out.read_table(file).to_pylist()
        file_counts = Counter[str]()
        for row in rows:
            kept, dropped = true_negatives(row["query"], row["negatives"], answers)
            row["negatives"] = [row["negatives"][place] for place in kept]
            file_counts += dropped
        if file_counts:
            out.write_table(file, pa.Table.from_pylist(rows, schema=TRAINING_ROW))
        left_out += file_counts
    return left_out


def held_out_queries(out: Storage, names: Sequence[str]) -> dict[str, str]:
    """Name -> text of the queries that the datasets `names` have in held-out and dev sets."""
    places = [(f"{split} query of {name}", f"{split}/{name}/queries.parquet") for split in SPLITS for name in names]
    return {
        f"{place} {row['id']}": row["text"]
        for place, file in places
        if out.exists(file)
        for row in out.read_table(file, QUERIES).to_pylist()
    }


def drop_like_held_out(uri: str, name: str, evaluation: Evaluation) -> tuple[int, dict[str, float]]:
    """Move the written rows of one dataset that are like a held-out query to the rejects, file by file.

    Args:
        uri: folder of the stage `labelled`.
        name: of the dataset.
        evaluation: the held-out and dev queries of all datasets, of `held_out_queries`.

    Returns:
        (number of rows moved, `lengths` of those that are left).
    """
    out, moved, left = Storage(uri), 0, list[dict[str, Any]]()
    for number, file in enumerate(out.names(f"rows/{name}", ".parquet")):
        table, rejects = out.read_table(file), list[Reject]()
        rows = [LabelledRow(r["id"], r["query"], r["positive"]) for r in table.to_pylist()]
        clean = {row.id for row in decontaminated(rows, evaluation, rejects)}
        if rejects:
            found = pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECT)
            out.write_table(f"rejects/{name}/heldout-{number:05d}.parquet", found)
            table = table.filter(pa.array([row.id in clean for row in rows]))
            out.write_table(file, table)
        moved += len(rejects)
        left += table.select(["query", "positive", "negatives"]).to_pylist()
    return moved, lengths([(r["query"], r["positive"], r["negatives"]) for r in left])


def lengths(rows: Sequence[tuple[str, str, Sequence[str]]]) -> dict[str, float]:
    """Mean words and negatives of (query, positive, negatives), for the data card."""
    if not rows:
        return {}

    def mean(values: Iterator[int]) -> float:
        return round(float(np.mean(list(values))), 1)

    return {
        "query_words": mean(len(query.split()) for query, _, _ in rows),
        "positive_words": mean(len(positive.split()) for _, positive, _ in rows),
        "negatives": mean(len(negatives) for _, _, negatives in rows),
    }
