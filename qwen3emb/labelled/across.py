"""What the sets of a run say about one another: a positive of one set is no negative of the same query in another."""

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
    """What answers those queries that more than one of the sets has."""
    tables = [out.read_table(f"{ANSWERS}/{name}", ANSWER) for name in names]
    if len(tables) < 2:
        return {}
    asked = np.concatenate([np.unique(table["query"].to_numpy()) for table in tables])
    queries, counts = np.unique(asked, return_counts=True)
    common = queries[counts > 1]
    return answers_in_table(
        pa.concat_tables([t.filter(pa.array(np.isin(t["query"].to_numpy(), common))) for t in tables])
    )


def drop_false_negatives(uri: str, name: str, answers: Answers) -> Counter[str]:
    """Take out of the rows of the set `name` what answers their query; how many negatives, by `false_negatives.FALSE`.

    Args:
        uri: of the stage `labelled`.
        name: of the set.
        answers: of all sets.
    """
    out, left_out = Storage(uri), Counter[str]()
    for file in out.names(f"rows/{name}", ".parquet"):
        rows = out.read_table(file).to_pylist()
        found = Counter[str]()
        for row in rows:
            kept, dropped = true_negatives(row["query"], row["negatives"], answers)
            row["negatives"] = [row["negatives"][place] for place in kept]
            found += dropped
        if found:
            out.write_table(file, pa.Table.from_pylist(rows, schema=TRAINING_ROW))
        left_out += found
    return left_out
