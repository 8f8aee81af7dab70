"""The typed rows that pass between stages, as Arrow schemas of their Parquet files."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["ANSWER", "CORPUS", "PAIR", "PASSAGE", "QRELS", "QUERIES", "REJECT", "TRAINING_ROW"]

PASSAGE = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("title", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
    ]
)
"""A unit of text to search in or to write queries for. `source` is the file or URI it came from. `split` is `train`, or
`dev` or `heldout` for the passages of documents that no training sees (null in corpora of older versions: `train`)."""

PAIR = pa.schema(
    [
        ("id", pa.string()),
        ("query", pa.string()),
        ("document", pa.string()),
        ("document_id", pa.string()),
        ("dataset", pa.string()),
        ("language", pa.string()),
        ("persona", pa.string()),
        ("question_type", pa.string()),
        ("difficulty", pa.string()),
        ("words", pa.string()),
        ("score", pa.float32()),
        ("negatives", pa.list_(pa.string())),
        ("grade", pa.float32()),
    ]
)
"""A query and a document that answers it. `dataset` is `docstrings`, or `synthetic` with the task behind it where that
is not retrieval (`config.datasets`); persona, question_type, difficulty and words describe synthetic pairs (empty
otherwise); `score` is the cosine, null before `filter`; `negatives` are wrong labels of classification rows, `grade` is
the score of STS rows, from 0 to 5 (null otherwise)."""

TRAINING_ROW = pa.schema(
    [
        ("id", pa.string()),
        ("query", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("dataset", pa.string()),
        ("positive_score", pa.float32()),
        ("negative_scores", pa.list_(pa.float32())),
        ("grade", pa.float32()),
    ]
)
"""What the supervised stage and the reranker train on; negatives are ordered hardest first, mined ones behind those of
the labelled dataset. Scores are cosines, of mined negatives only; `grade` is a human score of the pair (STS sets)."""

REJECT = pa.schema(
    [
        ("id", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("payload", pa.string()),
    ]
)
"""A row that could not be used: why, where it came from (row is -1 where it does not apply), and its text."""

ANSWER = pa.schema([("query", pa.int64()), ("positive", pa.int64())])
"""A query and a text that answers it, as content ids (`text.identity`)."""

QUERIES = pa.schema([("id", pa.string()), ("text", pa.string()), ("language", pa.string())])
"""Queries of a retrieval set; `language` is null where the data does not say it."""

CORPUS = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
"""Documents of a retrieval set."""

QRELS = pa.schema([("query_id", pa.string()), ("corpus_id", pa.string()), ("score", pa.int32())])
"""Relevance judgments of a retrieval set; score > 0 is relevant."""
