"""Retrieval sets: queries, corpus, judgments - from the corpus stage or a BEIR folder."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from qwen3emb.config.serving import EvaluateConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import CORPUS, QRELS, QUERIES
from qwen3emb.core.storage import Storage, input_uri
from qwen3emb.text.beir import BadRow, BeirData, exact_text, read_beir_data
from qwen3emb.text.documents import document_text
from qwen3emb.text.passages import passages_as_corpus
from qwen3emb.text.table_files import find_table

__all__ = [
    "RetrievalSet",
    "check_retrieval_set",
    "named_set",
    "read_beir",
    "read_retrieval_set",
    "write_retrieval_set",
]


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents and graded judgments.

    Attributes:
        queries: query id -> text.
        corpus: document id -> (title, text).
        qrels: query id -> {document id: grade}, grades above 0 are relevant.
        languages: query id -> code, of the queries whose language the data says.
        notes: sentences on oddities of the data, for the log.
    """

    queries: dict[str, str]
    corpus: dict[str, tuple[str, str]]
    qrels: dict[str, dict[str, int]]
    languages: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def texts(self) -> list[str]:
        """Title and text joined by one space, in corpus order."""
        return [document_text(title, text) for title, text in self.corpus.values()]


def write_retrieval_set(folder: Storage, data: RetrievalSet, with_corpus: bool = True) -> None:
    """Write queries.parquet, corpus.parquet (left out with `with_corpus` false) and qrels.parquet."""
    queries = [{"id": i, "text": t, "language": data.languages.get(i)} for i, t in data.queries.items()]
    corpus = [{"id": i, "title": title, "text": text} for i, (title, text) in data.corpus.items()]
    qrels = [{"query_id": q, "corpus_id": d, "score": s} for q, judged in data.qrels.items() for d, s in judged.items()]
    for name, rows, schema in (("queries", queries, QUERIES), ("corpus", corpus, CORPUS), ("qrels", qrels, QRELS)):
        if name == "corpus" and not with_corpus:
            continue
        folder.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema))


def read_retrieval_set(folder: Storage, passages: Storage | None = None) -> RetrievalSet:
    """Read what `write_retrieval_set` wrote.

    Args:
        folder: of the set.
        passages: folder of passages that are its documents where the set has no corpus.parquet, so that the texts of a
            large corpus are not there twice.

    Raises:
        UserError: the files are not there.
    """
    if not folder.exists("queries.parquet"):
        raise UserError(f"{folder.uri}: no queries.parquet; this is not a retrieval set")
    queries, qrels = (folder.read_table(f"{name}.parquet").to_pylist() for name in ("queries", "qrels"))
    if passages is None or folder.exists("corpus.parquet"):
        rows = folder.read_table("corpus.parquet").to_pylist()
        corpus = {row["id"]: (row["title"] or "", row["text"]) for row in rows}
    else:
        corpus = passages_as_corpus(passages)
    judged: dict[str, dict[str, int]] = {}
    for row in qrels:
        judged.setdefault(row["query_id"], {})[row["corpus_id"]] = row["score"]
    return RetrievalSet(
        {r["id"]: r["text"] for r in queries},
        corpus,
        judged,
        {r["id"]: r["language"] for r in queries if r.get("language")},  # sets of older versions lack the column
    )


def read_beir(folder: Storage, split: str) -> RetrievalSet:
    """Read a BEIR folder (`text.beir`); judged queries only, texts as they are.

    A query may have a field `language` besides `_id` and `text`. Empty texts of documents stay, as in mteb.

    Raises:
        UserError: a file is missing, a row cannot be used (what is left out would change the scores), or a judged
            query is in no file.
    """
    data = read_beir_data(folder, split, exact_text, _refuse)
    missing = [query for query in data.qrels if query not in data.queries]
    if missing:
        raise UserError(
            f"{_source(folder, 'queries')}: {len(missing)} of {len(data.qrels)} queries that qrels/{split} judges are "
            f"not among the queries, the first is {missing[0]!r}"
        )
    return RetrievalSet(data.queries, data.corpus, data.qrels, data.languages, _notes(data))


def _notes(data: BeirData) -> tuple[str, ...]:
    unknown = [d for judged in data.qrels.values() for d in judged if d not in data.corpus]
    empty = sum(not (title.strip() or text.strip()) for title, text in data.corpus.values())
    notes = []
    if unknown:
        notes.append(f"{len(unknown)} judgments are of documents that the corpus lacks (first {unknown[0]!r})")
    if empty:
        notes.append(f"{empty} documents are empty")
    return tuple(notes)


def _refuse(bad: BadRow) -> None:
    raise UserError(f"{bad}; mend or remove the row")


def check_retrieval_set(data: RetrievalSet, folder: Storage, judgments: str, advice: str = "") -> None:
    """Refuse a set on which all models would score the same; for the stage and for `qwen3emb evaluate`.

    Args:
        data: the set.
        folder: where the set was read from.
        judgments: name of the table of judgments in the folder, without a suffix.
        advice: what the user can do, for the end of the message.

    Raises:
        UserError: no documents, no judged queries, or no document that is relevant to any.
    """
    end = f"; {advice}" if advice else ""
    judged, corpus = (_source(folder, stem) for stem in (judgments, "corpus"))
    counts = f"{len(data.queries)} queries and {len(data.corpus)} documents to evaluate on"
    if not data.queries or not data.corpus:
        raise UserError(f"{corpus if data.queries else judged}: {counts}{end}")
    relevant = [name for grades in data.qrels.values() for name, grade in grades.items() if grade > 0]
    if not relevant:
        raise UserError(f"{judged}: no grade above 0, so every model would score 0{end}")
    if not any(name in data.corpus for name in relevant):
        raise UserError(f"{judged}: no relevant document is in {corpus}, so every model would score 0{end}")


def _source(folder: Storage, stem: str) -> str:
    """A table of a folder, as messages name it."""
    table = find_table(folder, stem)
    return table.source if table else f"{folder.uri}/{stem}"


def named_set(cfg: EvaluateConfig) -> RetrievalSet:
    """The BEIR folder that a run is evaluated on by `evaluate.dataset`.

    Raises:
        UserError: it is missing or empty.
    """
    folder = Storage(input_uri(cfg.dataset))
    data = read_beir(folder, cfg.split)
    advice = "set evaluate.dataset and evaluate.split to a set with judged queries, or to `heldout`"
    check_retrieval_set(data, folder, f"qrels/{cfg.split}", advice)
    return data
