"""The stage `corpus`: files into passages, docstring pairs, and the dev and held-out retrieval sets.

Python is split by module, other documents by themselves (a file of Markdown or text, a row of a table). All passages
lie together, whatever their split: they are what is searched.

Three passes. Ray tasks read a group of files each and write `candidates/<group>/`; a killed run goes on with the
groups that are missing. (Plain tasks, not a Ray Data pipeline: nothing flows between them, and the gap from one to the
next is a millisecond instead of a tenth of a second, as long as the reading of a small group.) The driver reads the
candidates without their texts and decides (`split`). Then it goes through them once more, a part at a time, and writes
what is used. The order is that of the files, so the output is the same whatever the number of workers.

A row that the record counts (rows in = out + rejected) is one item of a file: a passage candidate (a chunk of a
text, a docstring with enough words in a training module), a pair candidate (a training function with a usable
summary), a documented function of a dev or held-out module (out: it is a document of that set), or a file or
row that could not be read. A training function may be both a passage and a pair. Docstrings that are too
short are no candidates.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from qwen3emb.config.data import CorpusConfig
from qwen3emb.config.datasets import DOCSTRINGS
from qwen3emb.config.resources import TASK
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import PAIR, PASSAGE, REJECT
from qwen3emb.core.rejects import escaped
from qwen3emb.core.storage import Storage
from qwen3emb.corpus.candidates import CANDIDATE, KEYS, chunker, file_rows
from qwen3emb.corpus.sources import CorpusFile, corpus_files
from qwen3emb.corpus.split import Verdict, decide
from qwen3emb.encoding.dispatch import Progress, dispatch
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set

__all__ = ["build_corpus"]

Row = dict[str, Any]

_CANDIDATES = "candidates"
_FILES_PER_TASK = {"python": 16, "markdown": 16, "text": 16}  # a table or JSONL file may be large: one
_PART_ROWS = 1024
_OUTPUTS = ("passages", "pairs", "dev", "heldout", "rejects")
_OUT_ROWS = 8192
_TEXTS = ["role", "split", "id", "text", "title", "query", "language", "source", "row"]


def build_corpus(ctx: StageContext[RunConfig], progress: Progress | None = None) -> StageResult:
    """Read the configured sources into `ctx.out`; `progress` is called with the numbers of files read and of all files.

    Raises:
        UserError: a source is missing or unreadable, or gives no passage at all.
    """
    cfg, seed, out = ctx.cfg.corpus, ctx.cfg.seed, ctx.out
    files = corpus_files(cfg.sources, seed)
    model = cfg.tokenizer or ctx.cfg.models.base
    if Path(model).expanduser().is_dir():  # a name or hub id is looked up where the task runs
        model = str(Path(model).expanduser().resolve())
    units = _reading_units(files, cfg)
    _read_candidates(units, cfg, seed, out, model, progress)
    parts = [name for name in out.names(_CANDIDATES, ".parquet") if name.split("/")[1] in units]
    verdict = decide(_keys(out, parts), cfg, seed)
    for name in _OUTPUTS:
        out.delete(name)
    return replace(_write(out, parts, verdict, len(files)), scratch=(_CANDIDATES,))


def _keys(out: Storage, parts: Sequence[str]) -> pa.Table:
    """The candidates without their texts, in order."""
    empty = CANDIDATE.empty_table().select(KEYS)
    read = (pq.read_table(out.path(p), filesystem=out.filesystem, columns=KEYS) for p in parts)
    return pa.concat_tables([empty, *read])


@dataclass
class _Parts:
    """Parquet files of at most `_OUT_ROWS` rows below a folder; at least one, which may be empty."""

    out: Storage
    folder: str
    schema: pa.Schema
    rows: list[Row] = field(default_factory=list)
    written: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.total += 1
        if len(self.rows) == _OUT_ROWS:
            self._flush()

    def close(self) -> None:
        if self.rows or not self.written:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self.rows, schema=self.schema)
        self.out.write_table(f"{self.folder}/part-{self.written:05d}.parquet", table)
        self.rows, self.written = [], self.written + 1


def _write(out: Storage, parts: Sequence[str], verdict: Verdict, files: int) -> StageResult:
    """Write the candidates by the verdict: used rows and rejects; rows beyond a cap are only counted.

    Raises:
        UserError: there is no passage.
    """
    schemas = {"passages": PASSAGE, "pairs": PAIR, "rejects": REJECT}
    tables = {name: _Parts(out, name, schema) for name, schema in schemas.items()}
    sets = {split: RetrievalSet({}, {}, {}) for split in ("dev", "heldout")}
    by_split = Counter[str]()
    rows = 0
    for place, row in enumerate(_candidates(out, parts)):
        rows += row["role"] != "shadow"
        reason = verdict.reasons.get(place)
        if reason is not None and not reason.startswith("over_max_"):
            tables["rejects"].add(_reject(row, reason))
        elif reason is not None or row["role"] == "shadow":
            continue
        elif row["role"] == "function":
            _add_document(sets[row["split"]], row, place in verdict.queries[row["split"]])
        elif row["role"] == "passage":
            tables["passages"].add(row)
            by_split[row["split"]] += 1
        else:
            tables["pairs"].add(_pair(row))
    for table in tables.values():
        table.close()
    counts = dict(Counter(reason.partition(":")[0] for reason in verdict.reasons.values()))
    if not tables["passages"].total:
        why = ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "none rejected"
        raise UserError(
            f"corpus.sources: {files} files give no passage ({rows} rows, {why}; see {out.uri}/rejects); "
            "name other sources, or lower corpus.min_words, dev_share or heldout_share"
        )
    for split, retrieval_set in sets.items():
        write_retrieval_set(out / split, retrieval_set)
    kept = {name: tables[name].total for name in ("passages", "pairs")}
    documents = {f"{split}_documents": len(retrieval_set.corpus) for split, retrieval_set in sets.items()}
    queries = {f"{split}_queries": len(retrieval_set.queries) for split, retrieval_set in sets.items()}
    ambiguous = {f"{split}_ambiguous_queries": count for split, count in verdict.ambiguous.items()}
    held = {f"{split}_passages": by_split[split] for split in sets if by_split[split]}
    metrics = {"files": files} | kept | held | documents | queries | ambiguous
    return StageResult(rows, sum(kept.values()) + sum(documents.values()), counts, metrics)


def _candidates(out: Storage, parts: Iterable[str]) -> Iterator[Row]:
    for part in parts:
        yield from pq.read_table(out.path(part), filesystem=out.filesystem, columns=_TEXTS).to_pylist()


def _add_document(retrieval_set: RetrievalSet, row: Row, with_query: bool) -> None:
    retrieval_set.corpus[row["id"]] = ("", row["text"])
    if with_query:  # ids of queries differ from those of documents: evaluators drop a query's own id
        query = f"query:{row['id']}"
        retrieval_set.queries[query] = row["query"]
        retrieval_set.languages[query] = row["language"]
        retrieval_set.qrels[query] = {row["id"]: 1}


def _pair(row: Row) -> Row:
    described = dict.fromkeys(("persona", "question_type", "difficulty", "words"), "")
    return described | {
        "id": row["id"],
        "query": row["query"],
        "document": row["text"],
        "document_id": f"code:{row['title']}",  # the bare name is the id of the docstring's passage
        "dataset": DOCSTRINGS,
        "language": row["language"],
        "score": None,
    }


def _reject(row: Row, reason: str) -> Row:
    place = {"id": row["id"], "source": row["source"], "row": row["row"]}
    text = f"{row['query']}\n\n{row['text']}" if row["role"] == "pair" else row["text"]
    return place | {"stage": "corpus", "reason": reason, "payload": escaped(text)}


def _read_candidates(
    units: dict[str, list[CorpusFile]],
    cfg: CorpusConfig,
    seed: int,
    out: Storage,
    model: str,
    progress: Progress | None,
) -> None:
    """Write the candidates of every unit that has none yet."""
    total = sum(map(len, units.values()))
    finished = {name.split("/")[1] for name in out.names(_CANDIDATES, "/done")}
    work = [(name, group) for name, group in units.items() if name not in finished]
    done = sum(len(group) for name, group in units.items() if name in finished)
    task: Any = ray.remote(_read_unit).options(**TASK.options())
    places = [None] * cfg.workers
    for answer in dispatch(places, lambda _, unit: task.remote(*unit, out.uri, cfg, seed, model), work, "corpus"):
        _raise_again(answer)
        done += answer["files"]
        if progress:
            progress(done, total)


def _raise_again(row: Row) -> None:
    if row["error"]:
        raise OSError(row["errno"], row["error"]) if row["errno"] else UserError(row["error"])


def _reading_units(files: Sequence[CorpusFile], cfg: CorpusConfig) -> dict[str, list[CorpusFile]]:
    """The files in groups for one task each; names sort in the order of the files and change with the group."""
    groups: list[list[CorpusFile]] = []
    for file in files:
        size = _FILES_PER_TASK.get(cfg.sources[file.source].kind, 1)
        if groups and groups[-1][0].source == file.source and len(groups[-1]) < size:
            groups[-1].append(file)
        else:
            groups.append([file])
    units = {}
    for number, group in enumerate(groups):
        digest = blake2b(json.dumps([asdict(file) for file in group]).encode(), digest_size=6).hexdigest()
        units[f"{number:07d}-{digest}"] = group
    return units


def _read_unit(unit: str, files: list[CorpusFile], uri: str, cfg: CorpusConfig, seed: int, model: str) -> Row:
    """Task: write the candidates of one unit's files; a repeated task writes the same files again.

    Ray keeps only the text of what a task raises, so errors of the user are returned.
    """
    try:
        _write_unit(Storage(uri), unit, files, cfg, seed, model)
    except UserError as error:
        return {"files": 0, "errno": 0, "error": str(error)}
    except OSError as error:
        if error.errno is None:  # a remote storage's own
            raise
        return {"files": 0, "errno": error.errno, "error": str(error)}
    return {"files": len(files), "errno": 0, "error": ""}


def _write_unit(out: Storage, unit: str, files: list[CorpusFile], cfg: CorpusConfig, seed: int, model: str) -> None:
    chunk = chunker(model, cfg.max_tokens, cfg.overlap_tokens)
    rows = (row for file in files for row in file_rows(file, cfg, seed, chunk))
    for number, part in enumerate(_batched(rows, _PART_ROWS)):
        table = pa.Table.from_pylist(part, schema=CANDIDATE)
        out.write_table(f"{_CANDIDATES}/{unit}/{number:07d}.parquet", table)
    out.write_bytes(f"{_CANDIDATES}/{unit}/done", b"")


def _batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while part := list(islice(rows, size)):
        yield part
