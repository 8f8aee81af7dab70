"""Tasks of the field's own harness, `mteb`: by their name, and with data from local folders.

A folder has one of these layouts (`<lang>/` only for tasks of several languages):

- retrieval: a BEIR folder, `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`;
- STS: `[<lang>/]<split>.tsv` with `sentence1`, `sentence2`, `score`;
- classification: `[<lang>/]<split>.jsonl` with `text`, `label`, a `train` split among them; the labels 1, 1.0 and "1"
  are one class;
- bitext: one table with `lang`, `sentence1`, `sentence2`; a language is the subset `<lang>-eng`.

Each file may be JSONL, Parquet, TSV or CSV, and gzip'ed; a task of one language also takes a folder with only one
language in it. A row that cannot be used is an error: leaving it out would change the scores. A folder given for a task
of mteb's name takes the place of its data; the metrics, prompts and main score stay mteb's. A folder of another name
becomes a task of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qwen3emb.data.beir import exact_text, has_beir_corpus
from qwen3emb.data.labelled_formats import class_text
from qwen3emb.data.rows import BadRecord
from qwen3emb.data.table_files import TableFile, find_table, table_file, table_rows
from qwen3emb.errors import NotThere, UserError
from qwen3emb.evaluate.retrieval import read_beir
from qwen3emb.storage import Storage

__all__ = ["open_tasks"]

_SPLITS = {"dev": "validation"}
"""Names of splits in our folders that mteb calls otherwise; tried where the mteb name is not there."""
_MAIN = {
    "Retrieval": "ndcg_at_10",
    "STS": "cosine_spearman",
    "Classification": "accuracy",
    "BitextMining": "f1",
}


def open_tasks(
    names: Sequence[str],
    folders: Mapping[str, Path],
    splits: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Any]:
    """mteb's tasks, those with a folder loaded from it.

    Args:
        names: of tasks or benchmarks ("MTEB(eng, v2)"); a name that mteb does not know needs a folder.
        folders: name -> folder with its data.
        splits: evaluate on these; default the task's own.
        say: takes lines about what is odd in the data.

    Raises:
        UserError: mteb knows no task of that name, or a folder does not hold what the task needs.
    """
    import mteb

    tasks: list[Any] = []
    for name in names:
        if name in {benchmark.name for benchmark in mteb.get_benchmarks()}:
            tasks += list(mteb.get_benchmark(name).tasks)
        else:
            tasks.append(_known(name) or _made(name, folders))
    for task in tasks:
        if splits:
            task.filter_eval_splits(list(splits))
        if task.metadata.name in folders:
            _load(task, folders[task.metadata.name], say)
    return tasks


def _known(name: str) -> Any:
    """mteb's task of that name, or None."""
    import mteb

    try:
        return mteb.get_task(name)
    except KeyError:
        return None


def _made(name: str, folders: Mapping[str, Path]) -> Any:
    """A task of our own for a folder, of the kind that its files tell."""
    import difflib

    import mteb
    from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    if name not in folders:
        near = difflib.get_close_matches(name, [task.metadata.name for task in mteb.get_tasks()], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"task {name}: mteb knows none of that name, and no folder is given (--data {name}=DIR){hint}")
    kinds: dict[Any, Any] = {
        "Retrieval": AbsTaskRetrieval,
        "STS": AbsTaskSTS,
        "Classification": AbsTaskClassification,
        "BitextMining": AbsTaskBitextMining,
    }
    kind: Any
    kind, subsets = _kind(folders[name])
    metadata = TaskMetadata(
        dataset={"path": str(folders[name]), "revision": "local"},
        name=name,
        description=f"Local data of {folders[name]}",
        type=kind,
        category="t2t",
        eval_splits=["test"],
        eval_langs={subset: ["eng-Latn"] for subset in subsets} if subsets else ["eng-Latn"],
        main_score=_MAIN[kind],
    )
    made = type(name, (kinds[kind],), {"metadata": metadata})
    return made()


def _kind(folder: Path) -> tuple[str, list[str]]:
    """(mteb's type, subsets) of what lies in a folder; no subsets where there is one unnamed set.

    Raises:
        UserError: it has none of the layouts.
    """
    if has_beir_corpus(Storage(str(folder))):
        return "Retrieval", []
    inside = _folders(folder)
    for place in (folder, *inside):
        test = find_table(Storage(str(place)), "test")
        if test is not None:
            there = [path.name for path in inside if find_table(Storage(str(path)), "test")]
            return _kind_of_rows(test), [] if place == folder else there
    pairs = _pairs_table(folder)
    if pairs is not None:
        languages = {language for language, _ in _pairs(pairs)}
        return "BitextMining", sorted(f"{language}-eng" for language in languages)
    retrieval = [path.name for path in inside if has_beir_corpus(Storage(str(path)))]
    hint = f"; {', '.join(retrieval)} in it can, each as a task of its own" if retrieval else ""
    raise UserError(f"{folder}: none of the layouts that can be evaluated{hint}; see `qwen3emb evaluate --help`")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def _kind_of_rows(file: TableFile) -> str:
    """What the fields of a file's first row are those of."""
    row = next(table_rows(file), None)
    fields = set(row.values if row and row.values else ())
    if {"sentence1", "sentence2"} <= fields:
        return "STS"
    if "text" in fields:
        return "Classification"
    said = ", ".join(sorted(fields)) or "none"
    raise UserError(f"{file.source}: expected the fields sentence1, sentence2, score, or text, label; it has {said}")


def _load(task: Any, folder: Path, say: Callable[[str], None]) -> None:
    """Put the folder's data where the task's own would be."""
    from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS

    if not folder.is_dir():
        raise UserError(f"--data {task.metadata.name}={folder}: no such folder")
    if isinstance(task, AbsTaskBitextMining):
        task.dataset = _bitext(folder, task.hf_subsets)
    else:
        readers: dict[Any, Any] = {AbsTaskRetrieval: partial(_retrieval, say=say)}
        readers |= {AbsTaskSTS: _sts, AbsTaskClassification: _classification}
        reader = next((read for kind, read in readers.items() if isinstance(task, kind)), None)
        if reader is None:
            kind = task.metadata.type
            raise UserError(f"task {task.metadata.name}: data of the type {kind} is not read from folders")
        splits = list(task.eval_splits)
        if isinstance(task, AbsTaskClassification):
            splits = list(dict.fromkeys([task.train_split, *splits]))
        if task.metadata.is_multilingual:
            here = [subset for subset in task.hf_subsets if (folder / subset).is_dir()]
            if not here:
                raise UserError(f"{folder}: no folder of the subsets {', '.join(task.hf_subsets)}")
            task.hf_subsets = here
            task.dataset = {subset: _by_split(reader, folder / subset, splits) for subset in here}
        else:
            found = _by_split(reader, _one_folder(folder, isinstance(task, AbsTaskRetrieval)), splits)
            task.dataset = {"default": found} if isinstance(task, AbsTaskRetrieval) else found
        if isinstance(task, AbsTaskClassification):
            task.dataset = _numbered(task.dataset)
    task.data_loaded = True


def _one_folder(folder: Path, retrieval: bool) -> Path:
    """The folder itself, or the one folder in it where nothing else is there: that of a language.

    Raises:
        UserError: there are several.
    """
    names = ("corpus",) if retrieval else ("test", "validation", "dev", "train")
    if any(find_table(Storage(str(folder)), name) for name in names):
        return folder
    inside = [path for path in _folders(folder) if any(find_table(Storage(str(path)), name) for name in names)]
    if len(inside) > 1:
        there = ", ".join(path.name for path in inside)
        raise UserError(
            f"{folder}: the task has one language, but there are data in {there}; name one of these folders"
        )
    return inside[0] if inside else folder


def _by_split(reader: Any, folder: Path, splits: Sequence[str]) -> dict[str, Any]:
    """split -> data; a split that mteb calls otherwise is looked for under our name too."""
    found = {}
    for split in splits:
        ours = next((mine for mine, theirs in _SPLITS.items() if theirs == split), split)
        try:
            found[split] = reader(folder, split)
        except NotThere:
            if ours == split:
                raise
            found[split] = reader(folder, ours)
    return found


def _retrieval(folder: Path, split: str, say: Callable[[str], None]) -> dict[str, Any]:
    from datasets import Dataset

    data = read_beir(Storage(str(folder)), split)
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


def _sts(folder: Path, split: str) -> Any:
    from datasets import Dataset

    def read(values: Mapping[str, object]) -> dict[str, Any]:
        sentences = {name: exact_text(values.get(name), name) for name in ("sentence1", "sentence2")}
        return sentences | {"score": _score(values.get("score"))}

    return Dataset.from_list(list(_read(_needed(folder, split, "tsv"), read)))


def _classification(folder: Path, split: str) -> Any:
    from datasets import Dataset

    def read(values: Mapping[str, object]) -> dict[str, Any]:
        return {"text": exact_text(values.get("text"), "text"), "label": class_text(values.get("label"), "label")}

    return Dataset.from_list(list(_read(_needed(folder, split, "jsonl"), read)))


def _score(value: object) -> float:
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score) or isinstance(value, bool):
        raise BadRecord(f"bad_grade: field 'score' is {value!r}")
    return score


def _numbered(data: dict[str, Any]) -> dict[str, Any]:
    """Labels as numbers, by the order of their names over all splits: mteb's metrics want numbers."""
    if any(isinstance(part, dict) for part in data.values()):
        return {subset: _numbered(part) for subset, part in data.items()}
    names = sorted({label for part in data.values() for label in part["label"]}, key=str)
    number = {name: i for i, name in enumerate(names)}
    return {
        split: part.remove_columns("label").add_column("label", [number[label] for label in part["label"]])
        for split, part in data.items()
    }


def _bitext(folder: Path, subsets: Sequence[str]) -> dict[str, dict[str, Any]]:
    from datasets import Dataset

    table = _pairs_table(folder)
    if table is None:
        raise NotThere(f"{folder}: no table of sentence pairs there (lang, sentence1, sentence2)")
    by_subset: dict[str, list[dict[str, str]]] = {}
    for language, pair in _pairs(table):
        by_subset.setdefault(f"{language}-eng", []).append(pair)
    missing = [subset for subset in subsets if subset not in by_subset]
    if missing:
        raise UserError(f"{table.source}: no pairs of {', '.join(missing[:5])}")
    return {subset: {"test": Dataset.from_list(by_subset[subset])} for subset in subsets}


def _pairs_table(folder: Path) -> TableFile | None:
    """The first table of a folder, TSV before others."""
    found = [table_file(Storage(str(folder)), path.name) for path in sorted(folder.glob("*.*")) if path.is_file()]
    tables = [table for table in found if table is not None]
    return min(tables, key=lambda table: table.kind != "tsv", default=None)


def _pairs(table: TableFile) -> Iterator[tuple[str, dict[str, str]]]:
    """(language, pair of sentences) of each row."""

    def read(values: Mapping[str, object]) -> tuple[str, dict[str, str]]:
        language = exact_text(values.get("lang"), "lang").strip()
        if not language:
            raise BadRecord("empty_field: 'lang'")
        return language, {name: exact_text(values.get(name), name) for name in ("sentence1", "sentence2")}

    return _read(table, read)


def _needed(folder: Path, split: str, kind: str) -> TableFile:
    """The table of a split; TSV or JSONL is what it usually is."""
    found = find_table(Storage(str(folder)), split)
    if found is None:
        places = [path.name for path in _folders(folder) if find_table(Storage(str(path)), split)]
        hint = f", but {', '.join(f'{name}/{split}' for name in places)} is" if places else ""
        raise NotThere(f"{folder}: no {split}.{kind} there{hint}")
    return found


_Row = TypeVar("_Row")


def _read(file: TableFile, read: Callable[[Mapping[str, object]], _Row]) -> Iterator[_Row]:
    """What `read` makes of each row of a table.

    Raises:
        UserError: a row cannot be read; what is left out would change the scores.
    """
    for row in table_rows(file):
        try:
            if row.values is None:
                raise BadRecord(row.problem)
            yield read(row.values)
        except BadRecord as error:
            raise UserError(f"{file.source}, {row.where}: {error}; mend or remove the row") from error
