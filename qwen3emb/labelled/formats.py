"""Records of labelled datasets in the formats of other projects: query, positives and negatives of each.

Formats: sentence-transformers' columns, FlagEmbedding, tevatron, ms-swift, and texts with a class label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from qwen3emb.config.labelled import ColumnNames
from qwen3emb.core.rejects import BadRecord
from qwen3emb.labelled.marks import NLI_NUMBERS, SWIFT_NUMBERS, Mark, field_named, marks_of
from qwen3emb.text.documents import document_text
from qwen3emb.text.labels import class_text, clean_text, required_text

__all__ = ["FORMATS", "Record", "detect", "read_record"]


@dataclass(frozen=True)
class Record:
    """One record of a labelled dataset, in whatever format it was written.

    Attributes:
        query: the query, or the first sentence of a pair.
        positives: documents that answer it; none for a text with a label.
        negatives: documents that do not.
        marks: grades and labels, which may say whether the positives are positives.
        closed: the format defines what its labels mean (ms-swift, NLI), so a record without a label is no positive
            where others have one.
        nli: the pair is a premise and a hypothesis (NLI).
        label: class of the text, where the set has classes.
    """

    query: str
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    closed: bool = False
    nli: bool = False
    label: str = ""


_QUERY = ("anchor", "query", "question", "sentence1", "text1", "premise", "title1", "sentence_A", "text_a")
_POSITIVE = (
    *("positive", "pos", "positives", "document", "passage", "answer", "answers", "context", "response"),
    *("sentence2", "text2", "hypothesis", "title2", "sentence_B", "text_b", "text_pair"),
)
_NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?([-_]?\d+)?|rejected_response", re.IGNORECASE)
_SWIFT = {"label", "rejected_response", "negative_messages"}
_LABELS = ("label_text", "label", "class", "intent", "category")


def detect(values: Mapping[str, object]) -> str | None:
    """The format of a record, by the names of its fields; None where it is no known one."""
    fields = values.keys()
    if "positive_passages" in fields:
        return "tevatron"
    if "positive_messages" in fields or ({"query", "response"} <= fields and not _SWIFT.isdisjoint(fields)):
        return "swift"
    if {"query", "pos"} <= fields:
        return "flagembedding"
    if _query_field(fields) and field_named(fields, _POSITIVE):
        return "columns"
    if "text" in fields and field_named(fields, _LABELS):
        return "classification"
    return None


def read_record(values: Mapping[str, object], form: str, columns: ColumnNames) -> Record:
    """The record in `values`.

    Args:
        values: field -> value of one row.
        form: one of `FORMATS`.
        columns: field names that differ from the usual ones, for the forms `columns` and `classification`.

    Raises:
        BadRecord: codes missing_field, not_a_string, empty_field, no_positive, lone_surrogate, control_character,
            invalid_utf8.
    """
    return FORMATS[form](values, columns)


def _query_field(fields: Collection[str]) -> str | None:
    return field_named(fields, _QUERY) or (
        field_named(fields, ("text",)) if field_named(fields, ("text_pair",)) else None
    )


def _columns(values: Mapping[str, object], names: ColumnNames) -> Record:
    query = names.query or _query_field(values.keys()) or "query"
    positive = names.positive or field_named([f for f in values if f != query], _POSITIVE) or "positive"
    taken = {query, positive}
    negatives = tuple(names.negatives) or tuple(f for f in values if f not in taken and _NEGATIVE.fullmatch(f))
    nli = {"premise", "hypothesis"} <= values.keys()
    return Record(
        required_text(values.get(query), query),
        _texts(values.get(positive), positive),
        tuple(text for name in negatives for text in _texts(values.get(name), name, optional=True)),
        marks_of(values, names.grade, {*taken, *negatives}, NLI_NUMBERS if nli else None),
        closed=nli,
        nli=nli,
    )


def _flagembedding(values: Mapping[str, object], names: ColumnNames) -> Record:
    return Record(
        required_text(values.get("query"), "query"),
        _texts(values.get("pos"), "pos"),
        _texts(values.get("neg"), "neg", optional=True),
        marks_of(values, names.grade, ("query", "pos", "neg")),
    )


def _tevatron(values: Mapping[str, object], names: ColumnNames) -> Record:
    return Record(
        required_text(values.get("query"), "query"),
        _some(_passages(values.get("positive_passages"), "positive_passages"), values, "positive_passages"),
        _passages(values.get("negative_passages"), "negative_passages"),
        marks_of(values, names.grade, ("query",)),
    )


def _passages(value: object, name: str) -> tuple[str, ...]:
    """The documents of a list of passages, those without a text left out."""
    documents = []
    for passage in _list(value, name):
        if not isinstance(passage, Mapping):
            raise BadRecord(f"not_a_list: field {name!r} is no list of passages")
        title, text = passage.get("title"), clean_text(passage.get("text"), f"{name}.text")
        if text:
            title = str(title) if type(title) is int else clean_text(title, f"{name}.title")
            documents.append(document_text(title, text))
    return tuple(documents)


def _swift(values: Mapping[str, object], names: ColumnNames) -> Record:
    marks = marks_of(values, names.grade, ("query", "response"), SWIFT_NUMBERS)
    if "messages" not in values:
        return Record(
            required_text(values.get("query"), "query"),
            _texts(values.get("response"), "response"),
            _texts(values.get("rejected_response"), "rejected_response", optional=True),
            marks,
            closed=True,
        )
    query = _chat(values["messages"], "messages")
    if not query:
        raise BadRecord("empty_field: 'messages' has no turn with a text but the system's")
    positives = _some(_chats(values.get("positive_messages"), "positive_messages"), values, "positive_messages")
    negatives = _chats(values.get("negative_messages"), "negative_messages")
    return Record(query, positives, negatives, marks, closed=True)


def _chats(value: object, name: str) -> tuple[str, ...]:
    """The texts of a list of chats, those without a text left out."""
    return tuple(text for chat in _list(value, name) if (text := _chat(chat, name)))


def _chat(value: object, name: str) -> str:
    """The turns of a list of messages as one text, without the system's and blank ones."""
    turns = _list(value, name)
    if not all(isinstance(t, Mapping) for t in turns):
        raise BadRecord(f"not_a_list: field {name!r} is no list of messages")
    roles = [(clean_text(t.get("role"), f"{name}.role"), t.get("content")) for t in turns if isinstance(t, Mapping)]
    texts = [clean_text(content, f"{name}.content") for role, content in roles if role != "system"]
    return "\n".join(text for text in texts if text)


def _classification(values: Mapping[str, object], names: ColumnNames) -> Record:
    query = names.query or "text"
    label = names.label or field_named(values, _LABELS) or "label"
    return Record(required_text(values.get(query), query), label=class_text(values.get(label), label))


FORMATS: dict[str, Callable[[Mapping[str, object], ColumnNames], Record]] = {
    "columns": _columns,
    "flagembedding": _flagembedding,
    "tevatron": _tevatron,
    "swift": _swift,
    "classification": _classification,
}
"""Format -> the function that reads its records."""


def _list(value: object, name: str) -> list[object]:
    """The entries of a list, null ones left out."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRecord(f"not_a_list: field {name!r} is {type(value).__name__}")
    return [entry for entry in value if entry is not None]


def _texts(value: object, name: str, optional: bool = False) -> tuple[str, ...]:
    """A text or a list of texts; blank and null ones are left out.

    SQuAD's answers are a mapping with a list `text`.
    """
    if isinstance(value, Mapping):
        value = value.get("text")
    texts = tuple(text for v in (value if isinstance(value, list) else [value]) if (text := clean_text(v, name)))
    return texts if optional else _some(texts, {name: value}, name)


def _some(texts: tuple[str, ...], values: Mapping[str, object], name: str) -> tuple[str, ...]:
    """The texts of a field that must have one."""
    if not texts:
        missing = values.get(name) is None
        raise BadRecord(f"missing_field: {name!r}" if missing else f"no_positive: field {name!r} is empty")
    return texts
