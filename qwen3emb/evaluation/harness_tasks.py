"""Tasks of `mteb` by their name, and tasks whose data come from local folders.

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

import posixpath
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwen3emb.core.errors import NotThere, UserError
from qwen3emb.core.storage import Storage
from qwen3emb.evaluation.harness_data import (
    OUR_NAMES,
    SPLITS,
    bitext_data,
    bitext_table,
    check_classes,
    classification_data,
    folders_in,
    numbered,
    pairs_of,
    retrieval_data,
    splits_in,
    sts_data,
)
from qwen3emb.text.beir import has_beir_corpus
from qwen3emb.text.table_files import TableFile, find_table, table_rows

__all__ = ["open_tasks"]

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
    """Tasks by name; those with a folder have their data loaded from it.

    Args:
        names: of tasks or benchmarks ("MTEB(eng, v2)"); a name that mteb does not know needs a folder.
        folders: name -> folder with its data.
        splits: evaluate on these; default the task's own.
        say: takes a line about each oddity of the data.

    Returns:
        mteb task objects, for a benchmark all of its tasks.

    Raises:
        UserError: mteb knows no task of that name, or a folder does not hold what the task needs.
    """
    import mteb

    tasks: list[Any] = []
    for name in names:
        if name in {benchmark.name for benchmark in mteb.get_benchmarks()}:
            tasks += list(mteb.get_benchmark(name).tasks)
        else:
            tasks.append(_mteb_task(name) or _folder_task(name, folders, splits))
    for task in tasks:
        if splits:
            task.filter_eval_splits(list(splits))
        if task.metadata.name in folders:
            _load(task, folders[task.metadata.name], say)
    return tasks


def _mteb_task(name: str) -> Any:
    """mteb's task of that name, or None."""
    import mteb

    try:
        return mteb.get_task(name)
    except KeyError:
        return None


def _folder_task(name: str, folders: Mapping[str, Path], splits: Sequence[str]) -> Any:
    """A new task for a local folder; its type follows from the files in it."""
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
    _check_folder(name, folders[name])
    kind, subsets, eval_splits = _kind(folders[name], splits)
    metadata = TaskMetadata(
        dataset={"path": str(folders[name]), "revision": "local"},
        name=name,
        description=f"Local data of {folders[name]}",
        type=kind,
        category="t2t",
        eval_splits=eval_splits,
        eval_langs={subset: ["eng-Latn"] for subset in subsets} if subsets else ["eng-Latn"],
        main_score=_MAIN[kind],
    )
    task_class = type(name, (kinds[kind],), {"metadata": metadata})
    return task_class()


def _check_folder(name: str, folder: Path) -> None:
    if not folder.is_dir():
        problem = "is a file; give the folder that it is in" if folder.exists() else "no such folder"
        raise UserError(f"--data {name}={folder}: {problem}")


def _kind(folder: Path, requested: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """(mteb's task type, subsets, splits) of the data in a folder; no subsets where it has no folders of languages.

    The splits are the requested ones, else `test` or the first one with data.

    Raises:
        UserError: it has none of the layouts.
    """
    if has_beir_corpus(Storage(str(folder))):
        return "Retrieval", [], list(requested) or _default_split(sorted(_judged_splits(folder)))
    inside = folders_in(folder)
    for place in (folder, *inside):
        splits = splits_in(place, requested)
        if splits:
            table = find_table(Storage(str(place)), splits[0])
            assert table is not None
            kind = _kind_of_rows(table)
            if kind == "BitextMining":
                break
            subsets = [] if place == folder else [path.name for path in inside if splits_in(path, requested)]
            return kind, subsets, list(requested) or _splits_to_evaluate(place, kind, splits)
    pairs = bitext_table(folder)
    if pairs is not None:
        languages = {language for language, _ in pairs_of(pairs)}
        return "BitextMining", sorted(f"{language}-eng" for language in languages), ["test"]
    retrieval = [path.name for path in inside if has_beir_corpus(Storage(str(path)))]
    hint = f"; {', '.join(retrieval)} in it can, each as a task of its own" if retrieval else ""
    raise UserError(f"{folder}: none of the layouts that can be evaluated{hint}; see `qwen3emb evaluate --help`")


def _judged_splits(folder: Path) -> set[str]:
    """The splits that a BEIR folder has judgments for."""
    names = Storage(str(folder)).names("qrels")
    return {posixpath.basename(name).partition(".")[0] for name in names} - {""}  # hidden files


def _default_split(splits: Sequence[str]) -> list[str]:
    """`test` if it is among `splits` or they are empty, else the first of them in the order of `SPLITS`."""
    first = [split for split in SPLITS if split in splits]
    return [[*first, *splits, "test"][0]]


def _splits_to_evaluate(place: Path, kind: str, splits: Sequence[str]) -> list[str]:
    """The split to evaluate on where none is requested; never the train split that a classifier is fitted on."""
    usable = [split for split in splits if split != "train"] if kind == "Classification" else list(splits)
    if not usable:
        raise NotThere(f"{place}: only the split train is there; a classification needs test or validation too")
    return _default_split(usable)


def _kind_of_rows(file: TableFile) -> str:
    """mteb's task type, as the fields of the file's first row tell it."""
    row = next(table_rows(file), None)
    if row is None:
        raise UserError(f"{file.source}: no rows there to evaluate on")
    fields = set(row.values or ())
    if {"lang", "sentence1", "sentence2"} <= fields and "score" not in fields:
        return "BitextMining"
    if {"sentence1", "sentence2"} <= fields:
        return "STS"
    if "text" in fields:
        return "Classification"
    names = ", ".join(sorted(fields)) or "none"
    raise UserError(f"{file.source}: expected the fields sentence1, sentence2, score, or text, label; it has {names}")


def _load(task: Any, folder: Path, say: Callable[[str], None]) -> None:
    """Load the folder's data into the task in place of its own."""
    from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS

    _check_folder(task.metadata.name, folder)
    if isinstance(task, AbsTaskBitextMining):
        task.dataset = bitext_data(folder, task.hf_subsets)
    else:
        readers: dict[Any, Any] = {AbsTaskRetrieval: partial(retrieval_data, say=say)}
        readers |= {AbsTaskSTS: sts_data, AbsTaskClassification: classification_data}
        reader = next((read for kind, read in readers.items() if isinstance(task, kind)), None)
        if reader is None:
            kind = task.metadata.type
            raise UserError(f"task {task.metadata.name}: data of the type {kind} is not read from folders")
        splits = list(task.eval_splits)
        if isinstance(task, AbsTaskClassification):
            splits = list(dict.fromkeys([task.train_split, *splits]))
        if task.metadata.is_multilingual:
            subsets = [subset for subset in task.hf_subsets if (folder / subset).is_dir()]
            if not subsets:
                raise UserError(f"{folder}: no folder of the subsets {', '.join(task.hf_subsets)}")
            task.hf_subsets = subsets
            task.dataset = {subset: _by_split(reader, folder / subset, splits) for subset in subsets}
        else:
            by_split = _by_split(reader, _one_folder(folder, isinstance(task, AbsTaskRetrieval), splits), splits)
            task.dataset = {"default": by_split} if isinstance(task, AbsTaskRetrieval) else by_split
        if isinstance(task, AbsTaskClassification):
            check_classes(task.dataset, task.train_split, folder)
            task.dataset = numbered(task.dataset)
    task.data_loaded = True


def _one_folder(folder: Path, retrieval: bool, splits: Sequence[str]) -> Path:
    """The folder itself if it has tables, else the only folder in it with tables: that of a language.

    Raises:
        UserError: there are several.
    """
    names = ("corpus",) if retrieval else (*splits, *SPLITS)
    if any(find_table(Storage(str(folder)), name) for name in names):
        return folder
    inside = [path for path in folders_in(folder) if any(find_table(Storage(str(path)), name) for name in names)]
    if len(inside) > 1:
        candidates = ", ".join(path.name for path in inside)
        raise UserError(
            f"{folder}: the task has one language, but there are data in {candidates}; name one of these folders"
        )
    return inside[0] if inside else folder


def _by_split(reader: Any, folder: Path, splits: Sequence[str]) -> dict[str, Any]:
    """split -> its data from `reader`; a split that is not there is tried under our name for it (`OUR_NAMES`)."""
    by_split = {}
    for split in splits:
        ours = next((name for name, theirs in OUR_NAMES.items() if theirs == split), split)
        try:
            by_split[split] = reader(folder, split)
        except NotThere:
            if ours == split:
                raise
            by_split[split] = reader(folder, ours)
    return by_split
