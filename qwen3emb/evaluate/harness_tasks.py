"""Tasks of the field's own harness, `mteb`: by their name, and with data from local folders.

A folder has one of these layouts (`<lang>/` only for tasks of several languages):

- retrieval: a BEIR folder, `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`;
- STS: `[<lang>/]<split>.tsv` with `sentence1`, `sentence2`, `score`;
- classification: `[<lang>/]<split>.jsonl` with `text`, `label`, a `train` split among them;
- bitext: one table with `lang`, `sentence1`, `sentence2`; a language is the subset `<lang>-eng`.

Each file may be gzip'ed. A folder given for a task of mteb's name takes the place of its data; the metrics, prompts and
main score stay mteb's. A folder of another name becomes a task of its own.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def open_tasks(names: Sequence[str], folders: Mapping[str, Path], splits: Sequence[str] = ()) -> list[Any]:
    """mteb's tasks, those with a folder loaded from it.

    Args:
        names: of tasks or benchmarks ("MTEB(eng, v2)"); a name that mteb does not know needs a folder.
        folders: name -> folder with its data.
        splits: evaluate on these; default the task's own.

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
            _load(task, folders[task.metadata.name])
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
    if _there(folder, "corpus.jsonl"):
        return "Retrieval", []
    for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        subsets = [] if place == folder else sorted(path.name for path in folder.glob("*") if path.is_dir())
        if _there(place, "test.tsv"):
            return "STS", subsets
        if _there(place, "test.jsonl"):
            return "Classification", subsets
    tables = sorted(folder.glob("*.tsv*"))
    if tables:
        return "BitextMining", sorted({f"{row['lang']}-eng" for row in _table(tables[0])})
    raise UserError(f"{folder}: none of the layouts that can be evaluated; see `qwen3emb evaluate --help`")


def _there(folder: Path, name: str) -> Path | None:
    """The file, or its gzip'ed form."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _load(task: Any, folder: Path) -> None:
    """Put the folder's data where the task's own would be."""
    from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS

    if not folder.is_dir():
        raise UserError(f"--data {task.metadata.name}={folder}: no such folder")
    if isinstance(task, AbsTaskBitextMining):
        task.dataset = _bitext(folder, task.hf_subsets)
    else:
        readers = {AbsTaskRetrieval: _retrieval, AbsTaskSTS: _sts, AbsTaskClassification: _classification}
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
            found = _by_split(reader, folder, splits)
            task.dataset = {"default": found} if isinstance(task, AbsTaskRetrieval) else found
        if isinstance(task, AbsTaskClassification):
            task.dataset = _numbered(task.dataset)
    task.data_loaded = True


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


def _retrieval(folder: Path, split: str) -> dict[str, Any]:
    from datasets import Dataset

    data = read_beir(Storage(str(folder)), split)
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

    rows = list(_table(_needed(folder, f"{split}.tsv")))
    return Dataset.from_list([{**row, "score": float(row["score"])} for row in rows])


def _classification(folder: Path, split: str) -> Any:
    from datasets import Dataset

    content = Storage(str(folder)).read_bytes(_needed(folder, f"{split}.jsonl").name)
    return Dataset.from_list([json.loads(line) for line in content.splitlines() if line.strip()])


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

    tables = sorted(folder.glob("*.tsv*"))
    if not tables:
        raise NotThere(f"{folder}: no table of sentence pairs there")
    by_subset: dict[str, list[dict[str, str]]] = {}
    for row in _table(tables[0]):
        pair = {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
        by_subset.setdefault(f"{row['lang']}-eng", []).append(pair)
    missing = [subset for subset in subsets if subset not in by_subset]
    if missing:
        raise UserError(f"{tables[0]}: no pairs of {', '.join(missing[:5])}")
    return {subset: {"test": Dataset.from_list(by_subset[subset])} for subset in subsets}


def _needed(folder: Path, name: str) -> Path:
    found = _there(folder, name)
    if found is None:
        raise NotThere(f"{folder}: no {name} there")
    return found


def _table(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file with a header, without quoting."""
    text = Storage(str(path.parent)).read_bytes(path.name).decode()
    yield from csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
