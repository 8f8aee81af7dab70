"""The stage `synthesize`: passages into synthetic query-document pairs (paper section 3).

Ray Data hands out blocks of passages. One kind of actor reads a block and finds the candidate personas of its
passages; another holds a vLLM engine, makes both calls and writes the block's files: `rejects/NAME.parquet`,
then `pairs/NAME.parquet`. A block whose pairs file exists is done, so a killed run goes on with the blocks
that are missing, and a block that is written twice is the same file.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from qwen3emb.config.run import ModelsConfig, RunConfig, require_section
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.records import REJECT
from qwen3emb.core.rejects import Reject
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.blocks import Block, BlockPlan, Segment, plan_blocks, read_block
from qwen3emb.synthesis.engine import EngineLost, VllmEngine, engine_resources
from qwen3emb.synthesis.gates import drop_overlapping, drop_repeated
from qwen3emb.synthesis.personas import index_name, nearest_personas, persona_vectors, read_personas
from qwen3emb.synthesis.retrieval_model import embedded, retrieval_model
from qwen3emb.synthesis.tally import counting, figures, result
from qwen3emb.synthesis.tasks.item import SynthesisItem, weighted_languages, weighted_words
from qwen3emb.synthesis.writer import QueryWriter
from qwen3emb.text.decontamination import EvaluationNgrams, evaluation_texts
from qwen3emb.text.documents import document_text

__all__ = ["synthesize"]

_Say = Callable[[str], None]
_log = logging.getLogger(__name__)
_PASSAGES = "passages"
_DEATHS = 2  # after so many engines have died with a block, its rows are asked one at a time
_READER_CPUS = 0.5
_ENGINES_PER_READER = 4


def synthesize(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Write queries or other pairs for every chosen passage of the corpus into `ctx.out`; `say` is told the progress.

    Raises:
        UserError: no passages, no usable persona, an unknown language, or a model that cannot be used.
        StageFailure: blocks are missing at the end, or an engine cannot be started.
    """
    cfg, out = require_section(ctx.cfg.synthesize), ctx.out
    weighted_languages(cfg.languages)
    weighted_words(cfg.words)
    personas, bad_personas = read_personas(cfg.personas)
    _write_persona_rejects(out, bad_personas)
    corpus = ctx.inputs["corpus"] / _PASSAGES
    plan = plan_blocks(corpus, ctx.cfg.seed, cfg.max_passages, cfg.rows_per_block)
    if not plan.rows:
        raise UserError(f"{corpus.uri}: no passages to write queries for; check the sources of stage corpus")
    missing = _missing(plan, out)
    written = _write_blocks(ctx, plan, missing, personas, say) if missing else {}
    lost = _missing(plan, out)
    if lost:
        raise StageFailure(f"{len(lost)} of {len(plan.blocks)} blocks were not written; run again to go on")
    _drop(ctx, say)
    return result(
        plan.rows * cfg.queries_per_passage,
        out,
        written | {"personas": len(personas), "bad_personas": len(bad_personas)},
    )


def _drop(ctx: StageContext[RunConfig], say: _Say) -> None:
    """Reject what can only be seen over the whole stage."""
    gates, out = require_section(ctx.cfg.synthesize).gates, ctx.out
    if gates.heldout_share is not None:
        texts = evaluation_texts(ctx.inputs)
        held = drop_overlapping(out, EvaluationNgrams(list(texts), list(texts.values()), gates.heldout_share))
        if held:
            say(f"synthesize: {held} rows hold parts of what is evaluated on and are rejected")
    if gates.near_duplicate_query is not None:
        repeated = drop_repeated(out, gates.near_duplicate_query)
        if repeated:
            say(f"synthesize: {repeated} queries repeat others and are rejected")


def _missing(plan: BlockPlan, out: Storage) -> list[Block]:
    """Blocks without a pairs file. Files that are half written, or of another corpus, are removed."""
    for folder in ("rejects", "pairs"):
        known = {_file(folder, block.name) for block in plan.blocks}
        for foreign in set(out.names(folder)) - known:
            out.delete(foreign)
    written = set(out.names("pairs"))
    return [block for block in plan.blocks if _file("pairs", block.name) not in written]


def _file(folder: str, block: str) -> str:
    return f"{folder}/{block}.parquet"


def _write_persona_rejects(out: Storage, rejects: Sequence[Reject]) -> None:
    table = pa.Table.from_pylist([asdict(r) for r in rejects], schema=REJECT)
    out.write_table("persona_rejects/part-000000.parquet", table)


def _write_blocks(
    ctx: StageContext[RunConfig], plan: BlockPlan, missing: Sequence[Block], personas: list[str], say: _Say
) -> dict[str, Any]:
    """Run the actors over the missing blocks; what they did in this run."""
    began = time.monotonic()
    done = plan.rows - sum(block.rows for block in missing)
    say(f"synthesize: {done} of {plan.rows} passages done, {len(missing)} blocks to write")
    each = require_section(ctx.cfg.synthesize).queries_per_passage
    with counting(say, done * each, plan.rows * each) as tally:
        for _ in _dataset(ctx, plan, missing, personas, tally).iter_batches(batch_size=None):
            pass
        return figures(tally, time.monotonic() - began)


def _dataset(
    ctx: StageContext[RunConfig], plan: BlockPlan, missing: Sequence[Block], personas: list[str], tally: Any
) -> ray.data.Dataset:
    cfg, gpus = require_section(ctx.cfg.synthesize), ctx.cfg.cluster.gpus_per_worker > 0
    resources = engine_resources(cfg, gpus)
    _check_room(ctx.cfg, resources["num_cpus"] + _READER_CPUS)
    DataContext.get_current().enable_progress_bars = False
    engines, wanted = min(cfg.engines, len(missing)), cfg.candidates * cfg.queries_per_passage
    work = [{"name": b.name, "segments": json.dumps([asdict(s) for s in b.segments])} for b in missing]
    corpus, choice = (ctx.inputs["corpus"] / _PASSAGES).uri, replace(plan, blocks=())
    blocks = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _Reader,
        fn_constructor_args=(corpus, choice, ctx.cfg.storage, [ray.put(personas)], wanted, ctx.cfg.models),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=-(-engines // _ENGINES_PER_READER)),
        num_cpus=_READER_CPUS,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}},
    )
    return blocks.map_batches(
        _Writer,
        fn_constructor_args=(ctx.out.uri, ctx.cfg, tally),
        batch_size=1,
        batch_format="pyarrow",
        # One block at a time, or the first engine to be ready queues blocks that others could write. Ray restarts
        # a dead actor and gives it the block again; `Tally` bounds how often.
        compute=ActorPoolStrategy(size=engines, max_tasks_in_flight_per_actor=1),
        **resources,
    )


def _check_room(cfg: RunConfig, cpus: float) -> None:
    """An actor that does not fit would be waited for for ever."""
    embedded = cfg.cluster.address is None and not os.environ.get("RAY_ADDRESS")
    if embedded and cpus > cfg.cluster.num_cpus:
        raise UserError(
            f"synthesize.threads is {require_section(cfg.synthesize).threads}, but the Ray started here has "
            f"{cfg.cluster.num_cpus} CPUs; raise cluster.num_cpus"
        )


class _Reader:
    """Actor: a block's passages with their candidate personas, found with the retrieval model.

    The vectors of the personas lie in the run's storage: made once, used by every reader and by later runs.
    """

    def __init__(
        self, corpus: str, plan: BlockPlan, run: str, personas: list[Any], count: int, models: ModelsConfig
    ) -> None:
        self._corpus, self._plan, self._run = Storage(corpus), plan, Storage(run)
        self._personas: list[str] = ray.get(personas[0])
        self._count, self._models = count, models
        self._model: Any = None
        self._vectors: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """UDF over one block; the model is loaded here because Ray hides what a constructor raises."""
        [work] = batch.to_pylist()
        block = Block(work["name"], tuple(Segment(**s) for s in json.loads(work["segments"])))
        passages = read_block(self._corpus, self._plan, block)
        if self._model is None:
            self._model = retrieval_model(self._models)
            name = index_name(self._personas, str(self._models.retrieval))
            self._vectors = persona_vectors(self._run, name, lambda: self._encode(self._personas))
        documents = [document_text(p["title"] or "", p["text"] or "") for p in passages]
        vectors = self._encode(documents)
        nearest = nearest_personas(vectors, self._vectors, self._count)
        rows = [
            {"passage": p, "document": d, "personas": [self._personas[i] for i in near]}
            for p, d, near in zip(passages, documents, nearest, strict=True)
        ]
        return pa.table({"block": [block.name], "rows": [json.dumps(rows)]})

    def _encode(self, texts: list[str]) -> Any:
        return embedded(self._model, texts)


class _Writer:
    """Actor: one engine, which writes the files of the blocks it is given."""

    def __init__(self, out: str, cfg: RunConfig, tally: Any) -> None:
        self._out, self._cfg, self._tally = Storage(out), cfg, tally
        self._writer: QueryWriter | None = None
        self._failure: Exception | None = None
        try:  # while the first block is read
            self._writer = self._loaded()
        except Exception as error:  # Ray hides what a constructor raises; the first call raises it
            self._failure = error

    def _loaded(self) -> QueryWriter:
        began = time.monotonic()
        engine = VllmEngine(
            str(self._cfg.models.generator),
            require_section(self._cfg.synthesize),
            self._cfg.cluster.gpus_per_worker > 0,
        )
        self._tally.put.remote(f"engine {os.getpid()}", {"load_seconds": time.monotonic() - began, "engines": 1})
        return QueryWriter(engine, require_section(self._cfg.synthesize), self._cfg.seed)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """UDF over one block."""
        if self._writer is None:
            raise self._failure or StageFailure("the engine was not loaded")
        [block] = batch.to_pylist()
        name = block["block"]
        if not self._out.exists(_file("pairs", name)):
            try:
                self._write(self._writer, name, json.loads(block["rows"]))
            except EngineLost as error:
                _log.error("the engine is lost, this process ends and Ray starts another: %s", error)
                os._exit(1)  # an exception would end the job; a dead actor is replaced and its block repeated
        return pa.table({"block": [name]})

    def _write(self, writer: QueryWriter, name: str, contents: list[dict[str, Any]]) -> None:
        rows = [row for c in contents for row in writer.items(c["passage"], c["document"], c["personas"])]
        deaths, guilty = ray.get(self._tally.begin.remote(name))
        for row in rows:
            if row.passage["id"] in guilty and not row.settled:
                row.fail("engine_died: the engine's process ended while this row was asked")
        alone = deaths >= _DEATHS
        size = 1 if alone else require_section(self._cfg.synthesize).batch_size
        began = time.monotonic()
        writer.tokens.clear()
        for start in range(0, len(rows), size):
            if alone:
                ray.get(self._tally.suspect.remote(name, rows[start].passage["id"]))
            writer.write(rows[start : start + size])
            done = _counted(rows[: start + size], writer.tokens, time.monotonic() - began)
            self._tally.put.remote(name, done)
        pairs, rejects = writer.tables(rows)
        self._out.write_table(_file("rejects", name), rejects)
        self._out.write_table(_file("pairs", name), pairs)  # last: it says that the block is done


def _counted(rows: Sequence[SynthesisItem], tokens: Counter[str], seconds: float) -> dict[str, float]:
    pairs = sum(row.problem is None for row in rows)
    return {"pairs": pairs, "rejects": len(rows) - pairs, "seconds": seconds, **tokens}
