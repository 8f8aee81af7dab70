"""Files into candidate rows with signatures, by Ray tasks: the first pass of the stage `corpus`.

A task reads a group of files and writes `candidates/<group>/`; a killed run goes on with the groups that are
missing. Plain tasks, not a Ray Data pipeline: nothing flows between them, and the gap from one to the next is
a millisecond instead of a tenth of a second, as long as the reading of a small group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from typing import Any

import pyarrow as pa

from qwen3emb.config.data import CorpusConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.corpus.candidates import CANDIDATE, file_rows
from qwen3emb.corpus.chunker import chunker
from qwen3emb.corpus.sources import CorpusFile

__all__ = ["CANDIDATES", "Progress", "Work", "read_unit", "reading_units"]

Row = dict[str, Any]
Work = tuple[str, list[CorpusFile]]  # name of a unit, its files
Progress = Callable[[int, int], None]  # not the one of `encoding`: that import would load torch in every task

CANDIDATES = "candidates"
"""The folder that the candidates are written to."""

_FILES_PER_TASK = {"python": 16, "markdown": 16, "text": 16}  # a table or JSONL file may be large: one
_PART_ROWS = 1024


def reading_units(files: Sequence[CorpusFile], cfg: CorpusConfig) -> dict[str, list[CorpusFile]]:
    """The files in groups for one task each; names sort in the order of the files and tell their content."""
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


def read_unit(unit: str, files: list[CorpusFile], uri: str, cfg: CorpusConfig, seed: int, model: str) -> Row:
    """Task: write the candidates of one unit's files; a repeated task writes the same files again.

    Ray keeps only the text of what a task raises, so errors that are the user's to mend are returned.
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
        out.write_table(f"{CANDIDATES}/{unit}/{number:07d}.parquet", table)
    out.write_bytes(f"{CANDIDATES}/{unit}/done", b"")


def _batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while part := list(islice(rows, size)):
        yield part
