"""The rows of local folders as mteb's tasks hold them; a row or a set that cannot be used is an error with its file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.core.rejects import BadRecord
from qwen3emb.core.storage import Storage
from qwen3emb.text.beir import exact_text
from qwen3emb.text.labels import class_text
from qwen3emb.text.retrieval_set import check_retrieval_set, read_beir
from qwen3emb.text.table_files import TableFile, find_table, table_file, table_rows

__all__ = [
    "OUR_NAMES",
    "SPLITS",
    "bitext_data",
    "bitext_table",
    "check_classes",
    "classification_data",
    "folders_in",
    "numbered",
    "pairs_of",
    "retrieval_data",
    "splits_in",
    "sts_data",
]

OUR_NAMES = {"dev": "validation"}
"""Names of splits in our folders that mteb calls otherwise; tried where the mteb name is not there."""
SPLITS = ("test", "validation", "dev", "train")
"""The usual names of splits, the one to evaluate on first."""


def retrieval_data(folder: Path, split: str, say: Callable[[str], None]) -> dict[str, Any]:
    """A BEIR folder's split as mteb's retrieval tasks hold it; what is odd is said."""
    from datasets import Dataset

    data = read_beir(Storage(str(folder)), split)
    check_retrieval_set(data, Storage(str(folder)), f"qrels/{split}")
    for note in data.notes:
        say(f"{folder}, {split}: {note}")
    corpus = [{"id": i, "title": title, "text": text} for i, (title, text) in data.corpus.items()]
    queries = [{"id": i, "text": text} for i, text in data.queries.items()]
    return {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": {query: dict(found) for query, found in data.qrels.items()},
        "top_ranked": None,
    }


def sts_data(folder: Path, split: str) -> Any:
    """Pairs of sentences and their scores.

    Raises:
        UserError: a row cannot be used, there is none, or all scores are the same: no correlation is defined.
    """
    from datasets import Dataset

    def read(values: Mapping[str, object]) -> dict[str, Any]:
        sentences = {name: exact_text(values.get(name), name) for name in ("sentence1", "sentence2")}
        return sentences | {"score": _score(values.get("score"))}

    table = _needed(folder, split, "tsv")
    rows = _read(table, read)
    if len(rows) > 1 and len({row["score"] for row in rows}) == 1:
        raise UserError(f"{table.source}: all {len(rows)} scores are {rows[0]['score']:g}, so nothing can correlate")
    return Dataset.from_list(rows)


def classification_data(folder: Path, split: str) -> Any:
    """Texts and the names of their classes."""
    from datasets import Dataset

    def read(values: Mapping[str, object]) -> dict[str, Any]:
        return {"text": exact_text(values.get("text"), "text"), "label": class_text(values.get("label"), "label")}

    return Dataset.from_list(_read(_needed(folder, split, "jsonl"), read))


def check_classes(data: dict[str, Any], train: str, folder: Path) -> None:
    """Whether the train split has two classes, and all those of the others.

    Raises:
        UserError: it has not; file and class are named.
    """
    if any(isinstance(part, dict) for part in data.values()):
        for subset, part in data.items():
            check_classes(part, train, folder / subset)
        return
    known = set(data[train]["label"])
    if len(known) < 2:
        raise UserError(f"{_place(folder, train)}: one class, {known.pop()!r}; a classifier needs two at least")
    for split, part in data.items():
        unknown = sorted(set(part["label"]) - known)
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(f"{_place(folder, split)}: the class {unknown[0]!r}{more} is not in the split {train}")


def _place(folder: Path, split: str) -> str:
    """The file of a split, which may lie in the folder's only language."""
    for place in (folder, *folders_in(folder)):
        for name in (split, *(ours for ours, theirs in OUR_NAMES.items() if theirs == split)):
            table = find_table(Storage(str(place)), name)
            if table is not None:
                return table.source
    return f"{folder}, {split}"


def _score(value: object) -> float:
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score) or isinstance(value, bool):
        raise BadRecord(f"bad_grade: field 'score' is {str(value)[:80]!r}")
    return score


def numbered(data: dict[str, Any]) -> dict[str, Any]:
    """Labels as numbers, by the order of their names over all splits: mteb's metrics want numbers."""
    if any(isinstance(part, dict) for part in data.values()):
        return {subset: numbered(part) for subset, part in data.items()}
    names = sorted({label for part in data.values() for label in part["label"]}, key=str)
    number = {name: i for i, name in enumerate(names)}
    return {
        split: part.remove_columns("label").add_column("label", [number[label] for label in part["label"]])
        for split, part in data.items()
    }


def bitext_data(folder: Path, subsets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Pairs of sentences by subset, `<lang>-eng`."""
    from datasets import Dataset

    table = bitext_table(folder)
    if table is None:
        raise NotThere(f"{folder}: no table of sentence pairs there (lang, sentence1, sentence2)")
    by_subset: dict[str, list[dict[str, str]]] = {}
    for language, pair in pairs_of(table):
        by_subset.setdefault(f"{language}-eng", []).append(pair)
    missing = [subset for subset in subsets if subset not in by_subset]
    if missing:
        raise UserError(f"{table.source}: no pairs of {', '.join(missing[:5])}")
    return {subset: {"test": Dataset.from_list(by_subset[subset])} for subset in subsets}


def bitext_table(folder: Path) -> TableFile | None:
    """The first table of a folder, TSV before others."""
    found = [table_file(Storage(str(folder)), path.name) for path in sorted(folder.glob("*.*")) if path.is_file()]
    tables = [table for table in found if table is not None]
    return min(tables, key=lambda table: table.kind != "tsv", default=None)


def pairs_of(table: TableFile) -> list[tuple[str, dict[str, str]]]:
    """(language, pair of sentences) of each row."""

    def read(values: Mapping[str, object]) -> tuple[str, dict[str, str]]:
        language = exact_text(values.get("lang"), "lang").strip()
        if not language:
            raise BadRecord("empty_field: 'lang'")
        return language, {name: exact_text(values.get(name), name) for name in ("sentence1", "sentence2")}

    return _read(table, read)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def splits_in(folder: Path, asked: Sequence[str] = ()) -> list[str]:
    """The splits that a folder has a table of: of those asked for, then of the usual names."""
    names = [*asked, *(ours for ours, theirs in OUR_NAMES.items() if theirs in asked), *SPLITS]
    return [name for name in dict.fromkeys(names) if find_table(Storage(str(folder)), name)]


def _needed(folder: Path, split: str, kind: str) -> TableFile:
    """The table of a split; TSV or JSONL is what it usually is."""
    found = find_table(Storage(str(folder)), split)
    if found is None:
        places = [path.name for path in folders_in(folder) if find_table(Storage(str(path)), split)]
        there = [f"{name}/{split}" for name in places] or splits_in(folder)
        hint = f", but {', '.join(there)} {'are' if len(there) > 1 else 'is'}" if there else ""
        raise NotThere(f"{folder}: no {split}.{kind} there{hint}")
    return found


_Row = TypeVar("_Row")


def _read(file: TableFile, read: Callable[[Mapping[str, object]], _Row]) -> list[_Row]:
    """What `read` makes of each row of a table.

    Raises:
        UserError: there is no row, or one cannot be read; what is left out would change the scores.
    """
    rows = []
    for row in table_rows(file):
        try:
            if row.values is None:
                raise BadRecord(row.problem)
            rows.append(read(row.values))
        except BadRecord as error:
            raise UserError(f"{file.source}, {row.where}: {error}; mend or remove the row") from error
    if not rows:
        raise UserError(f"{file.source}: no rows there to evaluate on")
    return rows
