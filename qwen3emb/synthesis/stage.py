"""The stage `synthesize`: passages into synthetic query-document pairs (paper section 3).

Ray Data hands out blocks of passages. One kind of actor reads a block and finds the candidate personas of its
passages; another holds a vLLM engine, makes both calls and writes the block's files: `rejects/NAME.parquet`,
then `pairs/NAME.parquet`. A block whose pairs file exists is done, so a killed run goes on with the blocks
that are missing, and a block that is written twice is the same file.

Where documents are held out, the same actors write drafts of queries for them, below `drafts/dev` and `drafts/heldout`,
and the best ones become the sets `dev` and `heldout` (`drafts`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.config.resources import ENGINES_PER_READER, reader_bundle
from qwen3emb.config.run import ModelsConfig, RunConfig, require_section
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.records import REJECT
from qwen3emb.core.rejects import Reject
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import gather, within_limits
from qwen3emb.synthesis.blocks import Block, BlockPlan, Segment, plan_blocks, read_block
from qwen3emb.synthesis.drafts import draft_config, draft_folder, passage_document
from qwen3emb.synthesis.engine import EngineLost, VllmEngine, engine_resources
from qwen3emb.synthesis.gates import drop_overlapping, drop_repeated
from qwen3emb.synthesis.personas import index_name, nearest_personas, persona_vectors, read_personas
from qwen3emb.synthesis.retrieval_model import embedded, retrieval_model
from qwen3emb.synthesis.sets import write_sets
from qwen3emb.synthesis.tally import ANSWER_SECONDS, counting, figures, has_engine, result
from qwen3emb.synthesis.tasks.item import SynthesisItem, weighted_languages, weighted_words
from qwen3emb.synthesis.writer import QueryWriter
from qwen3emb.text.decontamination import EvaluationNgrams
from qwen3emb.text.evaluation_sets import asked_passages, evaluation_texts
from qwen3emb.text.passages import PASSAGES

__all__ = ["synthesize"]

_Say = Callable[[str], None]
_log = logging.getLogger(__name__)
_DEATHS = 2  # after so many engines have died with a block, its rows are asked one at a time


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
    parts = _parts(ctx)
    plan = parts[""].plan
    missing = _missing(parts, out)
    written = _write_blocks(ctx, parts, missing, personas, say) if missing else {}
    lost = _missing(parts, out)
    if lost:
        blocks = sum(len(part.plan.blocks) for part in parts.values())
        raise StageFailure(f"{len(lost)} of {blocks} blocks were not written; run again to go on")
    _drop(ctx, say)
    sets = write_sets(ctx, say)
    return result(
        plan.rows * cfg.queries_per_passage,
        out,
        written | sets | {"personas": len(personas), "bad_personas": len(bad_personas)},
    )


@dataclass(frozen=True)
class _Part:
    """Passages of one split, and how their queries are written."""

    plan: BlockPlan
    cfg: SynthesizeConfig

    @property
    def personas(self) -> int:
        """Candidate personas of a passage."""
        return self.cfg.candidates * self.cfg.queries_per_passage


_Work = list[tuple[str, Block]]
"""Blocks to write, each with the folder of its part: "" of training pairs, else `drafts.draft_folder`."""


def _parts(ctx: StageContext[RunConfig]) -> dict[str, _Part]:
    """Folder -> what is written there: the training pairs, and the drafts of dev and held-out queries.

    Raises:
        UserError: there is no passage to train on.
    """
    cfg, corpus, seed = require_section(ctx.cfg.synthesize), ctx.inputs["corpus"] / PASSAGES, ctx.cfg.seed
    plan = plan_blocks(corpus, seed, cfg.max_passages, cfg.rows_per_block)
    if not plan.rows:
        raise UserError(
            f"{corpus.uri}: no passages to write queries for; check corpus.sources, or lower corpus.dev_share and "
            "corpus.heldout_share"
        )
    parts = {"": _Part(plan, cfg)}
    for split, count in asked_passages(ctx.cfg).items():
        drafts = draft_config(cfg, require_section(cfg.evaluation))
        parts[draft_folder(split)] = _Part(plan_blocks(corpus, seed, count, cfg.rows_per_block, split), drafts)
    return parts


def _drop(ctx: StageContext[RunConfig], say: _Say) -> None:
    """Reject what can only be seen over the whole stage."""
    gates, out = require_section(ctx.cfg.synthesize).gates, ctx.out
    if gates.heldout_share is not None:
        texts = evaluation_texts(ctx.cfg, ctx.inputs)
        held = drop_overlapping(out, EvaluationNgrams(list(texts), list(texts.values()), gates.heldout_share))
        if held:
            say(f"synthesize: {held} rows hold parts of what is evaluated on and are rejected")
    if gates.near_duplicate_query is not None:
        repeated = drop_repeated(out, gates.near_duplicate_query)
        if repeated:
            say(f"synthesize: {repeated} queries repeat others and are rejected")


def _missing(parts: Mapping[str, _Part], out: Storage) -> _Work:
    """Blocks without a pairs file. Files that are half written, or of another corpus, are removed."""
    missing: _Work = []
    for below, part in parts.items():
        place = out / below if below else out
        for folder in ("rejects", "pairs"):
            known = {_file(folder, block.name) for block in part.plan.blocks}
            for foreign in set(place.names(folder)) - known:
                place.delete(foreign)
        written = set(place.names("pairs"))
        missing += [(below, block) for block in part.plan.blocks if _file("pairs", block.name) not in written]
    return missing


def _file(folder: str, block: str) -> str:
    return f"{folder}/{block}.parquet"


def _write_persona_rejects(out: Storage, rejects: Sequence[Reject]) -> None:
    table = pa.Table.from_pylist([asdict(r) for r in rejects], schema=REJECT)
    out.write_table("persona_rejects/part-000000.parquet", table)


def _write_blocks(
    ctx: StageContext[RunConfig], parts: Mapping[str, _Part], missing: _Work, personas: list[str], say: _Say
) -> dict[str, Any]:
    """Run the actors over the missing blocks; what they did in this run."""
    began = time.monotonic()
    rows = sum(part.plan.rows for part in parts.values())
    say(f"synthesize: {rows - sum(b.rows for _, b in missing)} of {rows} passages done, {len(missing)} blocks to write")
    total = sum(part.plan.rows * part.cfg.queries_per_passage for part in parts.values())
    left = sum(block.rows * parts[folder].cfg.queries_per_passage for folder, block in missing)
    with counting(say, total - left, total) as tally:
        written = _dataset(ctx, parts, missing, personas, tally).iter_batches(batch_size=None)
        for _ in within_limits(written, "synthesize", started=lambda: has_engine(tally)):
            pass
        return figures(tally, time.monotonic() - began)


def _dataset(
    ctx: StageContext[RunConfig], parts: Mapping[str, _Part], missing: _Work, personas: list[str], tally: Any
) -> ray.data.Dataset:
    cfg, gpus = require_section(ctx.cfg.synthesize), ctx.cfg.cluster.gpus_per_worker > 0
    resources = engine_resources(cfg, gpus)
    _check_room(ctx.cfg, resources["num_cpus"] + reader_bundle(cfg).cpus)
    DataContext.get_current().enable_progress_bars = False
    engines = min(cfg.engines, len(missing))
    work = [{"part": f, "name": b.name, "segments": json.dumps([asdict(s) for s in b.segments])} for f, b in missing]
    corpus = (ctx.inputs["corpus"] / PASSAGES).uri
    choices = {folder: replace(part, plan=replace(part.plan, blocks=())) for folder, part in parts.items()}
    blocks = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _Reader,
        fn_constructor_args=(corpus, choices, ctx.cfg.storage, [ray.put(personas)], ctx.cfg.models),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=-(-engines // ENGINES_PER_READER)),
        **reader_bundle(cfg).options(),
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"} | ({} if cfg.reader_gpus else {"CUDA_VISIBLE_DEVICES": ""})},
    )
    return blocks.map_batches(
        _Writer,
        fn_constructor_args=(ctx.out.uri, ctx.cfg, {folder: part.cfg for folder, part in parts.items()}, tally),
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
        self, corpus: str, parts: Mapping[str, _Part], run: str, personas: list[Any], models: ModelsConfig
    ) -> None:
        self._corpus, self._parts, self._run = Storage(corpus), parts, Storage(run)
        self._personas: list[str] = gather(personas, "synthesize: personas", ANSWER_SECONDS)[0]
        self._models = models
        self._model: Any = None
        self._vectors: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """UDF over one block; the model is loaded here because Ray hides what a constructor raises."""
        [work] = batch.to_pylist()
        block = Block(work["name"], tuple(Segment(**s) for s in json.loads(work["segments"])))
        part = self._parts[work["part"]]
        passages = read_block(self._corpus, part.plan, block)
        if self._model is None:
            self._model = retrieval_model(self._models)
            name = index_name(self._personas, str(self._models.retrieval))
            self._vectors = persona_vectors(self._run, name, lambda: self._encode(self._personas))
        documents = [passage_document(p) for p in passages]
        vectors = self._encode(documents)
        nearest = nearest_personas(vectors, self._vectors, part.personas)
        rows = [
            {"passage": p, "document": d, "personas": [self._personas[i] for i in near]}
            for p, d, near in zip(passages, documents, nearest, strict=True)
        ]
        return pa.table({"part": [work["part"]], "block": [block.name], "rows": [json.dumps(rows)]})

    def _encode(self, texts: list[str]) -> Any:
        return embedded(self._model, texts)


class _Writer:
    """Actor: one engine, which writes the files of the blocks it is given."""

    def __init__(self, out: str, cfg: RunConfig, parts: Mapping[str, SynthesizeConfig], tally: Any) -> None:
        self._out, self._cfg, self._parts, self._tally = Storage(out), cfg, parts, tally
        self._writers: dict[str, QueryWriter] = {}
        self._failure: Exception | None = None
        try:  # while the first block is read
            self._writers = self._loaded()
        except Exception as error:  # Ray hides what a constructor raises; the first call raises it
            self._failure = error

    def _loaded(self) -> dict[str, QueryWriter]:
        """The engine, once, with a writer for each part."""
        began = time.monotonic()
        engine = VllmEngine(
            str(self._cfg.models.generator),
            require_section(self._cfg.synthesize),
            self._cfg.cluster.gpus_per_worker > 0,
        )
        self._tally.put.remote(f"engine {os.getpid()}", {"load_seconds": time.monotonic() - began, "engines": 1})
        return {folder: QueryWriter(engine, cfg, self._cfg.seed) for folder, cfg in self._parts.items()}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """UDF over one block."""
        if not self._writers:
            raise self._failure or StageFailure("the engine was not loaded")
        [block] = batch.to_pylist()
        part, name = block["part"], block["block"]
        out = self._out / part if part else self._out
        if not out.exists(_file("pairs", name)):
            try:
                self._write(self._writers[part], out, name, json.loads(block["rows"]))
            except EngineLost as error:
                _log.error("the engine is lost, this process ends and Ray starts another: %s", error)
                os._exit(1)  # an exception would end the job; a dead actor is replaced and its block repeated
        return pa.table({"block": [name]})

    def _write(self, writer: QueryWriter, out: Storage, name: str, contents: list[dict[str, Any]]) -> None:
        rows = [row for c in contents for row in writer.items(c["passage"], c["document"], c["personas"])]
        deaths, guilty = _told(self._tally.begin.remote(name))
        for row in rows:
            if row.passage["id"] in guilty and not row.settled:
                row.fail("engine_died: the engine's process ended while this row was asked")
        alone = deaths >= _DEATHS
        size = 1 if alone else require_section(self._cfg.synthesize).batch_size
        began = time.monotonic()
        writer.tokens.clear()
        for start in range(0, len(rows), size):
            if alone:
                _told(self._tally.suspect.remote(name, rows[start].passage["id"]))
            writer.write(rows[start : start + size])
            done = _counted(rows[: start + size], writer.tokens, time.monotonic() - began)
            self._tally.put.remote(name, done)
        pairs, rejects = writer.tables(rows)
        out.write_table(_file("rejects", name), rejects)
        out.write_table(_file("pairs", name), pairs)  # last: it says that the block is done


def _told(reference: Any) -> Any:
    """The tally's answer."""
    return gather([reference], "synthesize: the tally", ANSWER_SECONDS)[0]


def _counted(rows: Sequence[SynthesisItem], tokens: Counter[str], seconds: float) -> dict[str, float]:
    pairs = sum(row.problem is None for row in rows)
    return {"pairs": pairs, "rejects": len(rows) - pairs, "seconds": seconds, **tokens}
