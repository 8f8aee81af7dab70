"""Labelled data sets into training rows: every record becomes rows or a reject (paper section 4, stage 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from qwen3emb.config_labelled import LabelledSetConfig
from qwen3emb.data.files import COMPRESSED, SUFFIXES, file_prefixes, first_line, list_files, resolve
from qwen3emb.data.labelled_formats import FORMATS, BadRecord, Record, detect, read_record
from qwen3emb.data.raw_rows import TABLE_KINDS, RawRow, guarded, raw_rows
from qwen3emb.data.requirements import unit_draw
from qwen3emb.data.rows import PAYLOAD_CHARACTERS, Reject, escaped
from qwen3emb.errors import NotThere, UserError
from qwen3emb.evaluate.index import document_text
from qwen3emb.evaluate.retrieval import read_beir
from qwen3emb.storage import Storage, absolute_uri

__all__ = ["LabelledRow", "read_labelled"]

STAGE = "labelled"


@dataclass(frozen=True)
class LabelledRow:
    """One query, one positive and the negatives its set gives it.

    Attributes:
        id: `SET/record`, and `#n` for the n-th positive of a record that has several.
        query, positive, negatives: texts.
        grade: human score of the pair; None where the set has none.
    """

    id: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    grade: float | None = None


@dataclass
class _Labels:
    """Classes met so far; the negatives of a class are the others, so rows wait until all are known."""

    waiting: list[tuple[str, Record]] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)


def read_labelled(name: str, cfg: LabelledSetConfig, seed: int) -> Iterator[LabelledRow | Reject]:
    """The rows and rejects of one set, in its order (texts with a class label last).

    A record with several positives gives one row for each. A text with a class label becomes a row whose positive is
    the label and whose negatives are other labels of the set, drawn by `seed` and the row's id.

    Args:
        name: of the set; ids begin with it.
        cfg: where it is and what its fields mean.
        seed: of the draw of labels.

    Raises:
        NotThere: nothing is there, or it cannot be reached.
        UserError: it cannot be read, its format is not known, or a class set has only one class.
    """
    try:
        yield from _beir(name, cfg) if cfg.format == "beir" else _read(name, cfg, seed)
    except UserError:
        raise
    except Exception as error:  # whatever a remote file system's library raises where there is no connection
        if "://" not in cfg.path:
            raise
        raise NotThere(f"{cfg.path} cannot be reached ({type(error).__name__}: {first_line(error)})") from error


def _read(name: str, cfg: LabelledSetConfig, seed: int) -> Iterator[LabelledRow | Reject]:
    labels = _Labels()
    kind = cfg.kind or _kind(cfg.path)
    files = list_files(cfg.path, kind)
    prefixes = file_prefixes(files)
    for file in files:
        where = name if len(files) == 1 else f"{name}/{prefixes[file]}"
        form = _configured(cfg)
        for raw in guarded(raw_rows(*resolve(file), kind, file), file):
            if form is None and raw.values is not None:
                form = _detected(raw, file)
            yield from _rows(raw, form or "columns", cfg, f"{where}/{raw.number}", file, labels)
    yield from _classes(name, cfg, labels, seed)


def _kind(path: str) -> str:
    """The kind of table that a path's suffix names."""
    name = PurePosixPath(path.partition("?")[0].lower())
    suffix = PurePosixPath(name.stem).suffix if name.suffix in COMPRESSED else name.suffix
    for kind in TABLE_KINDS:
        if suffix in SUFFIXES[kind]:
            return kind
    raise UserError(
        f"{path}: its name does not say what kind of file it is; give `kind`, one of {', '.join(TABLE_KINDS)}"
    )


def _configured(cfg: LabelledSetConfig) -> str | None:
    """The format that the config settles, if it does."""
    if cfg.format != "auto":
        return cfg.format
    if cfg.columns.label:
        return "classification"
    return "columns" if cfg.columns.query or cfg.columns.positive else None


def _detected(raw: RawRow, file: str) -> str:
    assert raw.values is not None
    found = detect(raw.values)
    if found is None:
        raise UserError(
            f"{file}, row {raw.number}: the fields {', '.join(raw.values)} are those of no known format; give "
            f"`columns` with query and positive, or `format`, one of {', '.join(FORMATS)}"
        )
    return found


def _rows(
    raw: RawRow, form: str, cfg: LabelledSetConfig, where: str, file: str, labels: _Labels
) -> Iterator[LabelledRow | Reject]:
    """The rows of one record, or its reject."""
    try:
        if raw.values is None:
            raise BadRecord(raw.problem)
        record = read_record(raw.values, form, cfg.columns)
        if form != "classification":
            yield from _of_record(record, where, cfg)
            return
    except BadRecord as error:
        payload = repr(raw.values) if raw.raw is None else raw.raw
        yield Reject(where, STAGE, escaped(str(error)), file, raw.number, escaped(payload))
        return
    labels.waiting.append((where, record))
    labels.names[record.label] = None


def _of_record(record: Record, where: str, cfg: LabelledSetConfig) -> Iterator[LabelledRow]:
    if cfg.task == "sts" and record.grade is None:
        raise BadRecord("missing_grade: a set of task sts needs a score in every record")
    if cfg.min_grade is not None and (record.grade is None or record.grade < cfg.min_grade):
        raise BadRecord(f"below_min_grade: {record.grade}")
    positives = list(dict.fromkeys(record.positives))
    negatives = tuple(n for n in dict.fromkeys(record.negatives) if n not in positives and n != record.query)
    for number, positive in enumerate(positives[: cfg.max_positives]):
        suffix = f"#{number}" if len(positives) > 1 else ""
        yield LabelledRow(where + suffix, record.query, positive, negatives[: cfg.max_negatives], record.grade)


def _classes(name: str, cfg: LabelledSetConfig, labels: _Labels, seed: int) -> Iterator[LabelledRow]:
    if labels.waiting and len(labels.names) < 2:
        raise UserError(
            f"labelled.sets.{name}: all {len(labels.waiting)} texts are of one class; nothing to tell apart"
        )
    for where, record in labels.waiting:
        others = [label for label in labels.names if label != record.label]
        others.sort(key=lambda label: unit_draw(seed, where, label))
        yield LabelledRow(where, record.query, record.label, tuple(others[: cfg.max_negatives]))


def _beir(name: str, cfg: LabelledSetConfig) -> Iterator[LabelledRow | Reject]:
    """One row for each judged pair with a grade above 0; documents graded 0 are its query's negatives."""
    found = read_beir(Storage(absolute_uri(cfg.path)), cfg.split)
    for query, judged in found.qrels.items():
        texts = {d: document_text(*found.corpus[d]) for d in judged if d in found.corpus}
        bad = tuple(texts[d] for d, grade in judged.items() if grade <= 0 and texts.get(d))
        for document, grade in judged.items():
            where = f"{name}/{query}/{document}"
            if grade <= 0:
                continue
            if not texts.get(document) or not found.queries[query].strip():
                problem = "missing_document" if document not in texts else "empty_field"
                payload = f"{found.queries[query]}\t{document}"[:PAYLOAD_CHARACTERS]
                yield Reject(where, STAGE, f"{problem}: {document}", cfg.path, -1, escaped(payload))
                continue
            yield LabelledRow(where, found.queries[query], texts[document], bad[: cfg.max_negatives])
