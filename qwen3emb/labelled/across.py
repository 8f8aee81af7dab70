"""False negatives across datasets: a positive of a query in one of them is no negative of that query in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from qwen3emb.core.records import ANSWER, TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.text.false_negatives import (
    ANSWERS,
    Answers,
    answers_in_table,
    true_negatives,
)

__all__ = ["drop_false_negatives", "shared_answers"]


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
