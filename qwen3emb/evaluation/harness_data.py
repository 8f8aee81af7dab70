"""Local folders read into the form of mteb's tasks; a row or set that cannot be used is an error with its file."""

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
"""Our name of a split -> mteb's name of it. Ours is tried where a folder has no split of mteb's name."""
SPLITS = ("test", "validation", "dev", "train")
"""The usual names of splits, the one to evaluate on first."""


def retrieval_data(folder: Path, split: str, say: Callable[[str], None]) -> dict[str, Any]:
    """A split of a BEIR folder in the form of mteb's retrieval tasks.

    Args:
        folder: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.
        split: name of the judgments.
        say: takes a line about each oddity of the data.

    Raises:
        UserError: a file is missing, a row cannot be used, or the set cannot be evaluated on.
    """
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
        "relevant_docs": {query: dict(grades) for query, grades in data.qrels.items()},
        "top_ranked": None,
    }


def sts_data(folder: Path, split: str) -> Any:
    """Sentence pairs and their similarity scores, as a `datasets.Dataset`.

    Raises:
        UserError: a row cannot be used, there is none, or all scores are equal, so that no correlation is defined.
    """
    from datasets import Dataset

    def read(values: Mapping[str, object]) -> dict[str, Any]:
        sentences = {name: exact_text(values.get(name), name) for name in ("sentence1", "sentence2")}
        return sentences | {"score": _score(values.get("score"))}

    table = _split_table(folder, split, "tsv")
    rows = _read(table, read)
    if len(rows) > 1 and len({row["score"] for row in rows}) == 1:
        raise UserError(f"{table.source}: all {len(rows)} scores are {rows[0]['score']:g}, so nothing can correlate")
    return Dataset.from_list(rows)


def classification_data(folder: Path, split: str) -> Any:
    """Texts and the names of their classes, as a `datasets.Dataset`.

    Raises:
        UserError: a row cannot be used, or there is none.
    """
    from datasets import Dataset

    def read(values: Mapping[str, object]) -> dict[str, Any]:
        return {"text": exact_text(values.get("text"), "text"), "label": class_text(values.get("label"), "label")}

    return Dataset.from_list(_read(_split_table(folder, split, "jsonl"), read))


def check_classes(data: dict[str, Any], train: str, folder: Path) -> None:
    """Check that the train split has at least two classes, and every class of the other splits.

    Args:
        data: split -> rows, or language -> split -> rows.
        train: name of the train split.
        folder: where the data come from, for messages.

    Raises:
        UserError: it has not; the message names the file and the class.
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
    """The file of a split, which may lie in the folder of the only language."""
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
    """The same data with class names replaced by their number in sorted order; mteb's metrics need numbers.

    All splits of a language share one numbering.
    """
    if any(isinstance(part, dict) for part in data.values()):
        return {subset: numbered(part) for subset, part in data.items()}
    names = sorted({label for part in data.values() for label in part["label"]}, key=str)
    number = {name: i for i, name in enumerate(names)}
    return {
        split: part.remove_columns("label").add_column("label", [number[label] for label in part["label"]])
        for split, part in data.items()
    }


def bitext_data(folder: Path, subsets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sentence pairs by subset, `<lang>-eng`, each as the split `test`.

    Raises:
        NotThere: the folder has no table.
        UserError: a row cannot be used, or a subset has no pairs.
    """
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
    """The table of sentence pairs in a folder: the first TSV file, else the first table; None without any."""
    files = [table_file(Storage(str(folder)), path.name) for path in sorted(folder.glob("*.*")) if path.is_file()]
    tables = [table for table in files if table is not None]
    return min(tables, key=lambda table: table.kind != "tsv", default=None)


def pairs_of(table: TableFile) -> list[tuple[str, dict[str, str]]]:
    """(language, {"sentence1", "sentence2"}) of each row.

    Raises:
        UserError: a row cannot be used, or there is none.
    """

    def read(values: Mapping[str, object]) -> tuple[str, dict[str, str]]:
        language = exact_text(values.get("lang"), "lang").strip()
        if not language:
            raise BadRecord("empty_field: 'lang'")
        return language, {name: exact_text(values.get(name), name) for name in ("sentence1", "sentence2")}

    return _read(table, read)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder in sorted order, without hidden ones."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def splits_in(folder: Path, requested: Sequence[str] = ()) -> list[str]:
    """The splits that a folder has a table for: the requested ones first, then those in the order of `SPLITS`."""
    names = [*requested, *(ours for ours, theirs in OUR_NAMES.items() if theirs in requested), *SPLITS]
    return [name for name in dict.fromkeys(names) if find_table(Storage(str(folder)), name)]


def _split_table(folder: Path, split: str, kind: str) -> TableFile:
    """The table of a split; `kind` is its usual file type, for the message where there is no table."""
    table = find_table(Storage(str(folder)), split)
    if table is None:
        places = [path.name for path in folders_in(folder) if find_table(Storage(str(path)), split)]
        available = [f"{name}/{split}" for name in places] or splits_in(folder)
        hint = f", but {', '.join(available)} {'are' if len(available) > 1 else 'is'}" if available else ""
        raise NotThere(f"{folder}: no {split}.{kind} there{hint}")
    return table


_Row = TypeVar("_Row")


def _read(file: TableFile, read: Callable[[Mapping[str, object]], _Row]) -> list[_Row]:
    """Apply `read` to each row of a table.

    Raises:
        UserError: there is no row, or one cannot be used; leaving it out would change the scores.
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
