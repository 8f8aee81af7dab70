"""The stage `index`: embed a corpus with the merged embedding model and write a search index.

Two passes over the corpus. The survey reads it without keeping the texts, and notes the rows that cannot be indexed
(empty texts, broken rows, duplicate ids) and, after an interruption, those that are indexed already. The second pass
embeds the others; each block of rows becomes one shard, written whole or not at all, so that an interrupted run repeats
only the blocks that were not written. At the end the small vectors are made of the shards, where the run wants some.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext

from qwen3emb.config.resources import SMALL_TASK, encoder_bundle
from qwen3emb.config.run import RunConfig
from qwen3emb.core.artifact import StageResult, read_record
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import REJECT
from qwen3emb.core.rejects import Reject
from qwen3emb.core.storage import Storage, input_uri
from qwen3emb.encoding.dispatch import START_SECONDS, Progress, within_limits
from qwen3emb.encoding.quantised import shortened
from qwen3emb.encoding.workers import EncodeWorker, ModelPlace
from qwen3emb.model.contract import CONTRACT_FILE, Contract
from qwen3emb.search.index import SHARDS, IndexInfo, finish_index, shard_table
from qwen3emb.text.documents import document_text
from qwen3emb.text.readers import read_file

__all__ = ["Survey", "build_index", "corpus_files"]

_TINY: dict[str, Any] = SMALL_TASK.options()
_READ_ROWS = 1024
_ROW = pa.schema(
    [
        *(("id", pa.string()), ("title", pa.string()), ("text", pa.string())),
        *(("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("payload", pa.string())),
    ]
)


@dataclass
class Survey:
    """The rows of a corpus: how many, which cannot be indexed, and which are still to embed.

    Attributes:
        rows: count of all rows, usable or not.
        rejects: rows that cannot be indexed, in the schema `records.REJECT`.
        skip: (source, row number) of usable rows that are not embedded: duplicates, and rows indexed before.
        pending: count of rows that are still to embed.
    """

    rows: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    skip: set[tuple[str, int]] = field(default_factory=set)
    pending: int = 0


def corpus_files(source: str, corpus: Storage) -> tuple[str, str, list[str]]:
    """The files of the corpus to index.

    Args:
        source: `index.source` of the config: `heldout` (the passages where no Python module is held out), `passages`,
            or a folder with `corpus.jsonl`.
        corpus: folder of the stage `corpus`.

    Returns:
        (kind for `read_file`, name of the id field, absolute paths or URIs).

    Raises:
        UserError: there are no such files.
    """
    if source == "heldout" and _rows_in(corpus, "heldout/corpus.parquet"):
        return "parquet", "id", [(corpus / "heldout/corpus.parquet").uri]
    if source in ("heldout", "passages"):
        names = corpus.names("passages", ".parquet")
        if not names:
            raise UserError(f"{corpus.uri}/passages: no passages there; run the stage `corpus` first")
        return "parquet", "id", [(corpus / name).uri for name in names]
    folder = Storage(input_uri(source))
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if folder.exists(name):
            return "jsonl", "_id", [(folder / name).uri]
    raise UserError(f"index.source {source!r}: expected `heldout`, `passages` or a folder with corpus.jsonl[.gz]")


def _rows_in(folder: Storage, file: str) -> int:
    return pq.read_metadata(folder.path(file), filesystem=folder.filesystem).num_rows if folder.exists(file) else 0


def build_index(ctx: StageContext[RunConfig], progress: Progress | None = None) -> StageResult:
    """Embed the configured corpus and write the index to `ctx.out`; rows that cannot be indexed go to its `rejects/`.

    Args:
        ctx: configuration, inputs and output folder of the stage.
        progress: called with (documents embedded, documents to embed).

    Returns:
        Counts of rows read and indexed, and of rejects by reason.

    Raises:
        UserError: the corpus or the model is missing, no row can be indexed, or the model has fewer dimensions than
            the index is to have.
    """
    cfg, model = ctx.cfg, ctx.inputs["merge"] / "embedding"
    if not model.exists(CONTRACT_FILE):
        raise UserError(f"{model.uri}: no embedding model of ours there; run the stage `merge` first")
    contract = Contract(**model.read_json(CONTRACT_FILE))
    dimension = cfg.index.dimensions or contract.dimensions
    if dimension > contract.dimensions:
        raise UserError(f"index.dimensions is {dimension}, but the model's vectors have {contract.dimensions}")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would print execution plans and log paths
    kind, id_field, files = corpus_files(cfg.index.source, ctx.inputs["corpus"])
    survey = _survey(_rows(kind, id_field, files, texts=False), _indexed(ctx.out))
    if survey.rows == len(survey.rejects):
        raise UserError(f"index.source {cfg.index.source!r}: none of its {survey.rows} rows can be indexed")
    ctx.out.delete("rejects")
    if survey.rejects:
        ctx.out.write_table("rejects/part-00000.parquet", pa.Table.from_pylist(survey.rejects, schema=REJECT))
    if survey.pending:
        _embed(_rows(kind, id_field, files, texts=True), cfg, model.uri, ctx.out, survey, progress)
    count = len(_indexed(ctx.out))
    fingerprint = str(read_record(ctx.inputs["merge"])["fingerprint"])
    limits = (cfg.index.max_tokens, cfg.index.vectors, cfg.index.rescore if cfg.index.vectors != "float32" else 0)
    finish_index(ctx.out, IndexInfo(dimension, count, fingerprint, contract.instruction, *limits))
    reasons = Counter(str(r["reason"]).partition(":")[0] for r in survey.rejects)
    return StageResult(survey.rows, count, dict(reasons), {"documents": count, "dimension": dimension})


def _rows(kind: str, id_field: str, files: list[str], texts: bool) -> Any:
    """The corpus as a Ray dataset of `_ROW`; rows that cannot be used have a `reason`."""
    listed: Any = ray.data.from_items([{"file": name} for name in files])
    arguments = {"kind": kind, "id_field": id_field, "texts": texts}
    return listed.map_batches(_read, batch_size=1, fn_kwargs=arguments, **_TINY)


def _read(batch: dict[str, np.ndarray], kind: str, id_field: str, texts: bool) -> Iterator[pa.Table]:
    """Ray Data function: the rows of the batch's files, `_READ_ROWS` at a time."""
    rows: list[dict[str, Any]] = []
    for name in batch["file"]:
        items = read_file(str(name), kind, text_field="text", title_field="title", id_field=id_field, language="und")
        for number, item in enumerate(items, start=1):
            rows.append(_row(item, number, texts))
            if len(rows) == _READ_ROWS:
                yield pa.Table.from_pylist(rows, schema=_ROW)
                rows = []
    yield pa.Table.from_pylist(rows, schema=_ROW)


def _row(item: Any, number: int, texts: bool) -> dict[str, Any]:
    base = {"id": item.id, "source": item.source, "row": item.row if isinstance(item, Reject) else number}
    if isinstance(item, Reject):
        return base | {"title": "", "text": "", "reason": item.reason, "payload": item.payload}
    return base | {"title": item.title, "text": item.text if texts else "", "reason": None, "payload": ""}


def _survey(rows: Any, indexed: set[str]) -> Survey:
    """Count the rows and find those that are not to be embedded.

    Of rows with the same id the first in (source, row) order is kept, in whatever order Ray delivers the blocks.
    """
    survey = Survey()
    first: dict[str, tuple[str, int]] = {}
    batches = rows.iter_batches(batch_size=_READ_ROWS, batch_format="pyarrow")
    for batch in within_limits(batches, "index: reading", piece_seconds=START_SECONDS):
        for row in batch.to_pylist():
            survey.rows += 1
            place = (row["source"], row["row"])
            if row["reason"] is not None:
                survey.rejects.append(_reject(row["id"], row["reason"], place, row["payload"]))
            elif row["id"] not in first:
                first[row["id"]] = place
            else:
                kept = min(place, first[row["id"]])
                dropped = max(place, first[row["id"]])
                first[row["id"]] = kept
                survey.skip.add(dropped)
                reason = f"duplicate_id: also at {kept[0]}, row {kept[1]}"
                survey.rejects.append(_reject(row["id"], reason, dropped, ""))
    survey.skip |= {place for name, place in first.items() if name in indexed}
    survey.pending = sum(name not in indexed for name in first)
    return survey


def _reject(name: str, reason: str, place: tuple[str, int], payload: str) -> dict[str, Any]:
    source, row = place
    return {"id": name, "stage": "index", "reason": reason, "source": source, "row": row, "payload": payload}


def _embed(rows: Any, cfg: RunConfig, model: str, out: Storage, survey: Survey, progress: Progress | None) -> None:
    """Embed the rows that `survey` does not reject or skip, and write one shard per block."""
    workers, gpus = cfg.index.workers, cfg.cluster.gpus_per_worker
    block = min(2048, max(32, survey.pending // (workers * 4)))
    embedded = (
        rows.map_batches(_pending, fn_kwargs={"skip": survey.skip}, batch_format="pyarrow", batch_size=None, **_TINY)
        .repartition(target_num_rows_per_block=block)
        .map_batches(
            _Embed,
            fn_constructor_args=(model, workers, gpus, cfg.index.max_tokens, cfg.index.dimensions),
            compute=ActorPoolStrategy(size=workers),
            batch_format="pyarrow",
            batch_size=None,
            **encoder_bundle(gpus).options(),
        )
        .map_batches(_write, fn_args=(out.uri,), batch_format="pyarrow", batch_size=None, **_TINY)
    )
    done = 0
    written = embedded.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in within_limits(written, "index: embedding"):
        done += sum(batch.column("rows").to_pylist())
        if progress:
            progress(done, survey.pending)


def _pending(rows: pa.Table, skip: set[tuple[str, int]]) -> pa.Table:
    """Ray Data function: the rows that are to be embedded."""
    places = zip(rows.column("source").to_pylist(), rows.column("row").to_pylist(), strict=True)
    usable = rows.column("reason").is_null().to_pylist()
    kept = [good and place not in skip for place, good in zip(places, usable, strict=True)]
    return rows.filter(pa.array(kept, type=pa.bool_())).select(["id", "title", "text"])


class _Embed:
    """Ray Data function: adds the column `vector` to rows."""

    def __init__(self, model: str, workers: int, gpus: float, max_tokens: int, dimensions: int | None) -> None:
        self._worker, self._model = EncodeWorker(workers, gpus), ModelPlace(model)
        self._max_tokens, self._dimensions = max_tokens, dimensions

    def __call__(self, rows: pa.Table) -> pa.Table:
        pairs = zip(rows.column("title").to_pylist(), rows.column("text").to_pylist(), strict=True)
        texts = [document_text(title, text) for title, text in pairs]
        vectors = self._worker.encode(self._model, texts, None, self._max_tokens)
        return shard_table(rows, shortened(vectors, self._dimensions or vectors.shape[1]))


def _write(rows: pa.Table, uri: str) -> pa.Table:
    """Ray Data function: write a shard, named by a hash of its ids, so that a repeated task writes the same file."""
    ids = rows.column("id").to_pylist()
    if ids:
        name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
        Storage(uri).write_table(f"{SHARDS}/{name}.parquet", rows)
    return pa.table({"rows": [len(ids)]})


def _indexed(out: Storage) -> set[str]:
    """Ids in the shards that are written already."""
    ids: set[str] = set()
    for name in out.names(SHARDS, ".parquet"):
        table = pq.read_table(out.path(name), filesystem=out.filesystem, columns=["id"])
        ids.update(table.column("id").to_pylist())
    return ids
