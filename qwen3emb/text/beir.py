"""BEIR folders: queries, documents and judgments. The caller decides what happens to a row that cannot be used."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.core.rejects import BadRecord, digits, text_problem
from qwen3emb.core.storage import Storage
from qwen3emb.text.raw_rows import RawRow
from qwen3emb.text.table_files import TableFile, find_table, first_cells, table_rows

__all__ = ["BadRow", "BeirData", "exact_text", "has_beir_corpus", "read_beir_data"]

_KINDS = ("jsonl", "parquet", "tsv", "csv")
_QRELS_KINDS = ("tsv", "csv", "jsonl", "parquet")
_QUERY = ("query-id", "query_id", "qid")
_DOCUMENT = ("corpus-id", "corpus_id", "doc-id", "doc_id", "docid")
_SCORE = ("score", "relevance", "grade")
_GRADES = 2**31  # pytrec_eval keeps 32 bits
_BARE = {3: ("query-id", "corpus-id", "score"), 4: ("query-id", "iteration", "corpus-id", "score")}  # 4: TREC's

Text = Callable[[object, str], str]
"""(value of a field, the field's name) -> its text; raises BadRecord where it has none that can be used."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, the file it is in, and the reason, as `<code>: <detail>`."""

    source: str
    row: RawRow
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, {self.row.where}: {self.reason}"


@dataclass
class BeirData:
    """Queries, documents and judgments of one split of a BEIR folder.

    Attributes:
        queries: id -> text, of those that are judged.
        languages: id -> code, of the queries whose language the data says.
        corpus: id -> (title, text).
        qrels: query id -> {document id: grade}; `queries` or `corpus` may lack an id.
    """

    queries: dict[str, str] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, tuple[str, str]] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)


def has_beir_corpus(folder: Storage) -> bool:
    """Whether a folder has a table `corpus`, as BEIR folders do."""
    return find_table(folder, "corpus", _KINDS) is not None


def read_beir_data(folder: Storage, split: str, text: Text, bad: Callable[[BadRow], None]) -> BeirData:
    """Read `corpus`, `queries` and `qrels/SPLIT`, each JSONL, Parquet, TSV or CSV, maybe compressed.

    Ids are `_id` or `id`; a whole number is taken as the text of its digits. Judgments have the columns query-id,
    corpus-id, score; without a header row they are three columns, or TREC's four. A row that repeats an earlier one is
    skipped.

    Args:
        folder: the BEIR folder.
        split: the split whose judgments are read.
        text: turns titles, texts and languages into the strings that are kept; `exact_text` keeps them as they are.
        bad: called with each row that cannot be used; codes: those of `text` and of `raw_rows`, missing_field,
            not_a_string, empty_field, bad_grade, duplicate_id, control_character (in an id), conflicting_grade (such a
            pair counts as not judged).

    Raises:
        NotThere: a file is missing.
        UserError: a file cannot be read, or the judgments have other columns.
    """
    data = BeirData()
    _read_qrels(_judgments(folder, split), data.qrels, bad)
    queries = _needed(folder, "queries")
    for row, values in _usable(queries, bad):
        try:
            _add_query(values, data, text)
        except BadRecord as error:
            bad(BadRow(queries.source, row, str(error)))
    corpus = _needed(folder, "corpus")
    for row, values in _usable(corpus, bad):
        try:
            _add(data.corpus, _id(values), (_title(values.get("title"), text), _body(values.get("text"), text)))
        except BadRecord as error:
            bad(BadRow(corpus.source, row, str(error)))
    return data


def exact_text(value: object, name: str) -> str:
    """A text unchanged, as mteb reads it; refused is what is no text, or cannot be encoded as UTF-8.

    Raises:
        BadRecord: codes missing_field, not_a_string, invalid_utf8, lone_surrogate.
    """
    if value is None:
        raise BadRecord(f"missing_field: {name!r}")
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise BadRecord(f"invalid_utf8: field {name!r}, byte {error.start}") from error
    if not isinstance(text, str):
        raise BadRecord(f"not_a_string: field {name!r} is {type(value).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(f"lone_surrogate: field {name!r}, character {error.start}") from error
    return text


def _usable(file: TableFile, bad: Callable[[BadRow], None]) -> Iterator[tuple[RawRow, Mapping[str, object]]]:
    for row in table_rows(file):
        if row.values is None:
            bad(BadRow(file.source, row, row.problem))
        else:
            yield row, row.values


def _add_query(values: Mapping[str, object], data: BeirData, text: Text) -> None:
    name = _id(values)
    if name not in data.qrels:
        return
    query = _body(values.get("text"), text)
    if not query.strip():
        raise BadRecord("empty_field: 'text'")
    code = values.get("language")
    language = text(code, "language") if code and digits(code) is not None else ""
    _add(data.queries, name, query)
    if language:
        data.languages[name] = language


def _add(known: dict[str, Any], name: str, content: object) -> None:
    if known.setdefault(name, content) != content:
        raise BadRecord(f"duplicate_id: {name!r} stands above with another text")


def _body(value: object, text: Text) -> str:
    if value is None:
        raise BadRecord("missing_field: 'text'")
    return text(value, "text")


def _title(value: object, text: Text) -> str:
    title = digits(value)
    return "" if title is None else text(title, "title")


def _id(values: Mapping[str, object]) -> str:
    return _name(values.get("id") if values.get("_id") is None else values["_id"], "_id")


def _name(value: object, field_name: str) -> str:
    """An id; the number 101 and the text "101" are the same."""
    name = exact_text(digits(value), field_name)
    if not name.strip():
        raise BadRecord(f"empty_field: {field_name!r}")
    problem = text_problem(name)  # pytrec_eval cuts an id at NUL
    if problem:
        raise BadRecord(f"{problem} of field {field_name!r}")
    return name


def _read_qrels(file: TableFile, qrels: dict[str, dict[str, int]], bad: Callable[[BadRow], None]) -> None:
    contradicted: list[tuple[str, str]] = []
    for row in table_rows(file, _bare_columns(file)):
        try:
            if row.values is None:
                raise BadRecord(row.problem)
            query, document = (_name(*_named(row.values, names)) for names in (_QUERY, _DOCUMENT))
            grade = _grade(*_named(row.values, _SCORE))
            before = qrels.setdefault(query, {}).setdefault(document, grade)
            if before != grade:
                contradicted.append((query, document))
                raise BadRecord(f"conflicting_grade: {query!r}, {document!r} has {grade} here and {before} above")
        except BadRecord as error:
            bad(BadRow(file.source, row, str(error)))
    for query, document in contradicted:
        qrels[query].pop(document, None)


def _named(values: Mapping[str, object], names: tuple[str, ...]) -> tuple[object, str]:
    """(value, name) of the first of the fields that the row has."""
    name = next((n for n in names if n in values), names[0])
    return values.get(name), name


def _grade(value: object, name: str) -> int:
    try:
        grade = float(value)  # type: ignore[arg-type]
        if grade == int(grade) and abs(grade) < _GRADES and not isinstance(value, bool):
            return int(grade)
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRecord(f"bad_grade: field {name!r} is {_shown(value)}; a judgment is a whole number below 2^31")


def _shown(value: object) -> str:
    return "a huge number" if isinstance(value, int) and abs(value) >= _GRADES else repr(value)[:80]


def _bare_columns(file: TableFile) -> tuple[str, ...]:
    """The columns of judgments without a header row; none where they have one.

    Raises:
        UserError: the first line is neither a header of judgments nor a judgment.
    """
    if file.kind not in ("tsv", "csv"):
        return ()
    cells = [cell.strip().strip('"') for cell in first_cells(file)]
    if cells == [""] or all(not set(names).isdisjoint(cells) for names in (_QUERY, _DOCUMENT, _SCORE)):
        return ()
    if len(cells) in _BARE and cells[-1].replace(".", "", 1).lstrip("-").isdigit():
        return _BARE[len(cells)]
    raise UserError(
        f"{file.source}, line 1: expected the columns {', '.join(_BARE[3])}, or a query's id, a document's id and a "
        f"grade; it has {', '.join(cells)[:200]}"
    )


def _judgments(folder: Storage, split: str) -> TableFile:
    table = find_table(folder, f"qrels/{split}", _QRELS_KINDS)
    if table is None:
        others = sorted({posixpath.basename(name).partition(".")[0] for name in folder.names("qrels")})
        hint = f"; there are judgments of {', '.join(others)}" if others else "; a BEIR folder has qrels/SPLIT.tsv"
        raise NotThere(f"{folder.uri}/qrels/{split}.tsv: no such file{hint}")
    return table


def _needed(folder: Storage, stem: str) -> TableFile:
    table = find_table(folder, stem, _KINDS)
    if table is None:
        raise NotThere(
            f"{folder.uri}/{stem}.jsonl: no such file, nor .gz or .parquet; a BEIR folder has corpus.jsonl, "
            "queries.jsonl, qrels/"
        )
    return table
