"""Retrieval sets: queries, corpus, judgments - from the corpus stage or a BEIR folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from qwen3emb.config_serve import EvaluateConfig
from qwen3emb.errors import NotThere, UserError
from qwen3emb.records import CORPUS, QRELS, QUERIES
from qwen3emb.storage import Storage

__all__ = ["RetrievalSet", "evaluation_set", "read_beir", "read_retrieval_set", "write_retrieval_set"]


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents and graded judgments.

    Attributes:
        queries: query id -> text.
        corpus: document id -> (title, text).
        qrels: query id -> {document id: grade}, grades above 0 are relevant.
        languages: query id -> code, of the queries whose language the data says.
    """

    queries: dict[str, str]
    corpus: dict[str, tuple[str, str]]
    qrels: dict[str, dict[str, int]]
    languages: dict[str, str] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """Title and text joined by one space, in corpus order."""
        return [f"{title} {text}".strip() for title, text in self.corpus.values()]


def write_retrieval_set(folder: Storage, data: RetrievalSet) -> None:
    """Write queries.parquet, corpus.parquet and qrels.parquet."""
    queries = [{"id": i, "text": t, "language": data.languages.get(i)} for i, t in data.queries.items()]
    corpus = [{"id": i, "title": title, "text": text} for i, (title, text) in data.corpus.items()]
    qrels = [{"query_id": q, "corpus_id": d, "score": s} for q, found in data.qrels.items() for d, s in found.items()]
    for name, rows, schema in (("queries", queries, QUERIES), ("corpus", corpus, CORPUS), ("qrels", qrels, QRELS)):
        folder.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema))


def read_retrieval_set(folder: Storage) -> RetrievalSet:
    """Read what `write_retrieval_set` wrote.

    Raises:
        UserError: the files are not there.
    """
    if not folder.exists("queries.parquet"):
        raise UserError(f"{folder.uri}: no queries.parquet; this is not a retrieval set")
    queries, corpus, qrels = (folder.read_table(f"{n}.parquet").to_pylist() for n in ("queries", "corpus", "qrels"))
    judged: dict[str, dict[str, int]] = {}
    for row in qrels:
        judged.setdefault(row["query_id"], {})[row["corpus_id"]] = row["score"]
    return RetrievalSet(
        {r["id"]: r["text"] for r in queries},
        {r["id"]: (r["title"] or "", r["text"]) for r in corpus},
        judged,
        {r["id"]: r["language"] for r in queries if r.get("language")},  # sets of before have no such column
    )


def read_beir(folder: Storage, split: str) -> RetrievalSet:
    """Read a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, each also gzip'ed); judged queries only.

    A query may have a field `language` besides `_id` and `text`.

    Raises:
        UserError: a file is missing or a line is not what it should be.
    """
    qrels: dict[str, dict[str, int]] = {}
    name = f"qrels/{split}.tsv"
    for number, row in enumerate(csv.DictReader(_lines(folder, name), delimiter="\t", quoting=csv.QUOTE_NONE), 2):
        try:
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder.uri}/{name}, line {number}: expected query-id, corpus-id, score") from error
    asked = [r for r in _json_lines(folder, "queries.jsonl") if r["_id"] in qrels]
    queries = {r["_id"]: r["text"] for r in asked}
    corpus = {r["_id"]: (r.get("title") or "", r["text"]) for r in _json_lines(folder, "corpus.jsonl")}
    missing = next((q for q in qrels if q not in queries), None)
    if missing is not None:
        raise UserError(f"{folder.uri}/{name}: query {missing!r} is judged but not in queries.jsonl")
    return RetrievalSet(queries, corpus, qrels, {r["_id"]: r["language"] for r in asked if r["language"]})


def evaluation_set(cfg: EvaluateConfig, corpus: Storage) -> RetrievalSet:
    """What a run is evaluated on.

    Args:
        cfg: names it.
        corpus: folder of the stage `corpus`, which holds the held-out set.

    Raises:
        UserError: it is missing or empty.
    """
    if cfg.dataset == "heldout":
        where, data = (corpus / "heldout").uri, read_retrieval_set(corpus / "heldout")
        advice = "raise corpus.heldout_share, add Python sources, or set evaluate.dataset to a BEIR folder"
    else:
        where, data = cfg.dataset, read_beir(Storage(cfg.dataset), cfg.split)
        advice = "set evaluate.dataset and evaluate.split to a set with judged queries, or to `heldout`"
    if not data.queries or not data.corpus:
        raise UserError(
            f"{where}: {len(data.queries)} queries and {len(data.corpus)} documents to evaluate on; {advice}"
        )
    return data


def _json_lines(folder: Storage, name: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(_lines(folder, name), 1):
        try:
            row = json.loads(line)
            optional = {name: str(row.get(name) or "") for name in ("title", "language")}
            yield {"_id": str(row["_id"]), "text": str(row["text"]), **optional}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder.uri}/{name}, line {number}: expected JSON with _id and text") from error


def _lines(folder: Storage, name: str) -> Iterator[str]:
    for candidate in (name, f"{name}.gz"):
        if folder.exists(candidate):
            return iter(io.StringIO(folder.read_bytes(candidate).decode("utf-8"), newline="\n"))
    raise NotThere(f"{folder.uri}/{name}: no such file; a BEIR folder has corpus.jsonl, queries.jsonl, qrels/")
