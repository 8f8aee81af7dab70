"""A BEIR folder as a labelled dataset: judged pairs into rows, rows of the files that cannot be used into rejects."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.rejects import Reject, escaped
from qwen3emb.core.storage import Storage, input_uri
from qwen3emb.labelled.row import STAGE, LabelledRow
from qwen3emb.text.beir import BadRow, BeirData, read_beir_data
from qwen3emb.text.documents import document_text
from qwen3emb.text.labels import clean_text

__all__ = ["beir_documents", "beir_rows"]


def beir_rows(name: str, cfg: LabelledDatasetConfig) -> Iterator[LabelledRow | Reject]:
    """One row for each judged pair with a grade above 0 and of `min_grade` or more; the query's other judged documents
    with grades of 0 or below are negatives.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    rejects: list[Reject] = []
    beir = read_beir_data(
        Storage(input_uri(cfg.path)), cfg.split, clean_text, lambda bad: rejects.append(_bad(name, bad))
    )
    yield from rejects
    for query, judged in beir.qrels.items():
        yield from _of_query(name, query, beir, judged, cfg)


def beir_documents(cfg: LabelledDatasetConfig) -> list[str]:
    """The texts of all documents of the folder, judged or not; rows that cannot be used are left out.

    Raises:
        UserError: as `beir_rows`.
    """
    beir = read_beir_data(Storage(input_uri(cfg.path)), cfg.split, clean_text, lambda bad: None)
    return [text for text in (document_text(*document) for document in beir.corpus.values()) if text]


def _bad(name: str, bad: BadRow) -> Reject:
    row = bad.row
    payload = repr(row.values) if row.raw is None else row.raw
    stem = posixpath.basename(bad.source).partition(".")[0]
    number = row.line or row.number
    return Reject(f"{name}/{stem}/{number}", STAGE, escaped(bad.reason), bad.source, number, escaped(payload))


def _of_query(
    name: str, query: str, beir: BeirData, judged: dict[str, int], cfg: LabelledDatasetConfig
) -> Iterator[LabelledRow | Reject]:
    texts = {d: document_text(*beir.corpus[d]) for d in judged if d in beir.corpus}
    bad = tuple(texts[d] for d, grade in judged.items() if grade <= 0 and texts.get(d))
    good = [d for d, grade in judged.items() if grade > 0 and (cfg.min_grade is None or grade >= cfg.min_grade)]
    others = tuple(texts[d] for d in good if texts.get(d)) if bad else ()
    for document in good:
        row_id = f"{name}/{query}/{document}"
        if query not in beir.queries:
            problem = f"missing_query: {query}"
        elif document not in texts:
            problem = f"missing_document: {document}"
        elif not texts[document]:
            problem = f"empty_field: document {document}"
        else:
            yield LabelledRow(row_id, beir.queries[query], texts[document], bad, others=others)
            continue
        payload = escaped(f"{beir.queries.get(query, query)}\t{document}")
        yield Reject(escaped(row_id), STAGE, escaped(problem), cfg.path, -1, payload)
