"""Labelled datasets into training rows: every record becomes rows or a reject (paper section 4, stage 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.draws import unit_draw
from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import BadRecord, Reject, escaped
from qwen3emb.labelled.beir import beir_rows
from qwen3emb.labelled.formats import FORMATS, Record, detect, read_record
from qwen3emb.labelled.grades import Grades
from qwen3emb.labelled.row import STAGE, LabelledRow, settled
from qwen3emb.text.false_negatives import answers_of
from qwen3emb.text.files import file_prefixes, list_files, reached, resolve
from qwen3emb.text.identity import content_id
from qwen3emb.text.raw_rows import TABLE_KINDS, RawRow, raw_rows, user_read_errors
from qwen3emb.text.table_files import kind_of

__all__ = ["STAGE", "LabelledRow", "read_labelled"]


_NESTED = {"positive_passages", "messages", "positive_messages"}  # no texts, so `columns` cannot read them


@dataclass
class _Labels:
    """Records that wait until the whole set has been read.

    Attributes:
        waiting: (row id, record) of texts with a class: their negatives are the other classes.
        names: content id -> name of the classes so far.
        unlabelled: (rows, reject) of records without a label: which of the two is used depends on the other records.
    """

    waiting: list[tuple[str, Record]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    unlabelled: list[tuple[list[LabelledRow], Reject]] = field(default_factory=list)


def read_labelled(
    name: str, cfg: LabelledDatasetConfig, seed: int, most: int | None = None
) -> Iterator[LabelledRow | Reject]:
    """The rejects of one set as they are found, then its rows, in its order (texts with a class label last).

    A record with several positives gives one row for each. A text with a class label becomes a row whose positive is
    the label and whose negatives are other labels of the set, drawn by `seed` and the row's id. A negative that is a
    positive of its query anywhere in the set is left out.

    Args:
        name: of the set; ids begin with it.
        cfg: where it is and what its fields mean.
        seed: of the draw of labels.
        most: stop after this many rows and rejects.

    Raises:
        NotThere: nothing is there, or it cannot be reached.
        UserError: it cannot be read, its format is not known, a class set has only one class, or grades do not say
            what is a positive (`grades`).
    """
    rows: list[LabelledRow] = []
    grades = Grades(name, cfg)
    items = beir_rows(name, cfg) if cfg.format == "beir" else _read(grades, seed, most)
    for item in islice(reached(items, cfg.path), most):
        if isinstance(item, Reject):
            yield item
        else:
            rows.append(item)
    grades.check_columns()
    yield from settled(rows, cfg.max_negatives)


def _read(grades: Grades, seed: int, most: int | None) -> Iterator[LabelledRow | Reject]:
    name, cfg, labels = grades.name, grades.cfg, _Labels()
    kind = cfg.kind or _kind(cfg.path)
    files = list_files(cfg.path, kind)
    prefixes = file_prefixes(files)
    for file in files:
        prefix = name if len(files) == 1 else f"{name}/{prefixes[file]}"
        form = _configured(cfg)
        for raw in user_read_errors(raw_rows(*resolve(file), kind, file), file):
            if form is None and raw.values is not None:
                form = _detected(raw, file, cfg)
            yield from _rows(raw, form or "columns", grades, f"{prefix}/{raw.number}", file, labels)
            if most is not None and len(labels.unlabelled) >= most:
                break
    yield from _unlabelled(grades, labels)
    yield from _classes(name, cfg, labels, seed)


def _unlabelled(grades: Grades, labels: _Labels) -> Iterator[LabelledRow | Reject]:
    """The rows of records without a label if no record of the set has one, else their rejects."""
    for rows, reject in labels.unlabelled:
        yield from [reject] if grades.labelled else rows


def _kind(path: str) -> str:
    """The kind of table that a path's suffix names."""
    kind = kind_of(path)
    if kind is None:
        raise UserError(
            f"{path}: its name does not say what kind of file it is; give `kind`, one of {', '.join(TABLE_KINDS)}"
        )
    return kind


def _configured(cfg: LabelledDatasetConfig) -> str | None:
    """The format that the configuration names or implies; None where it has to be detected."""
    if cfg.format != "auto":
        return cfg.format
    if cfg.columns.label:
        return _classification_of(cfg, f"labelled dataset {cfg.path}: columns.label")
    return "columns" if cfg.columns.query or cfg.columns.positive or cfg.columns.negatives else None


def _classification_of(cfg: LabelledDatasetConfig, place: str) -> str:
    """The format of texts with a class.

    Raises:
        UserError: the task is another one, under which the names of classes would be documents. It begins with `place`.
    """
    if cfg.task != "classification":
        raise UserError(
            f"{place} looks like classification, but the task is {cfg.task}; set task: classification (data describe: "
            "--task classification), or `columns` with query and positive"
        )
    return "classification"


def _detected(raw: RawRow, file: str, cfg: LabelledDatasetConfig) -> str:
    assert raw.values is not None
    form = detect(raw.values)
    if cfg.columns.grade and form in ("swift", "flagembedding") and _NESTED.isdisjoint(raw.values):
        return "columns"
    if form is None:
        raise UserError(
            f"{file}, row {raw.number}: the fields {', '.join(raw.values)} are those of no known format; give "
            f"`columns` with query and positive, or `format`, one of {', '.join(FORMATS)}"
        )
    return _classification_of(cfg, f"{file}, row {raw.number}") if form == "classification" else form


def _rows(
    raw: RawRow, form: str, grades: Grades, row_id: str, file: str, labels: _Labels
) -> Iterator[LabelledRow | Reject]:
    """The rows of one record, or its reject."""
    try:
        if raw.values is None:
            raise BadRecord(raw.problem)
        grades.fields.update(dict.fromkeys(raw.values))
        record = read_record(raw.values, form, grades.cfg.columns)
        if form != "classification":
            grade, positive = grades.check(record, file, raw.number)
            rows = _of_record(record, grade, row_id, grades.cfg)
            if positive:
                yield from rows
            else:
                labels.unlabelled.append((list(rows), _reject(raw, grades.missing_label(), row_id, file)))
            return
    except BadRecord as error:
        yield _reject(raw, str(error), row_id, file)
        return
    labels.waiting.append((row_id, record))
    labels.names.setdefault(content_id(record.label), record.label)


def _reject(raw: RawRow, reason: str, row_id: str, file: str) -> Reject:
    payload = repr(raw.values) if raw.raw is None else raw.raw
    return Reject(row_id, STAGE, escaped(reason), file, raw.number, escaped(payload))


def _of_record(record: Record, grade: float | None, row_id: str, cfg: LabelledDatasetConfig) -> Iterator[LabelledRow]:
    positives = list(dict.fromkeys(record.positives))
    others = tuple(positives) if len(positives) > 1 else ()
    for number, positive in enumerate(positives[: cfg.max_positives]):
        suffix = f"#{number}" if others else ""
        yield LabelledRow(row_id + suffix, record.query, positive, record.negatives, grade, others)


def _classes(name: str, cfg: LabelledDatasetConfig, labels: _Labels, seed: int) -> Iterator[LabelledRow]:
    if labels.waiting and len(labels.names) < 2:
        raise UserError(
            f"labelled.sets.{name}: all {len(labels.waiting)} texts are of one class; nothing to tell apart"
        )
    answers = answers_of((record.query, record.label) for _, record in labels.waiting)
    for row_id, record in labels.waiting:
        positives = answers[content_id(record.query)]  # a text may have several labels
        others = [label for number, label in labels.names.items() if number not in positives]
        others.sort(key=lambda label: unit_draw(seed, row_id, label))
        yield LabelledRow(row_id, record.query, record.label, tuple(others[: cfg.max_negatives]))
