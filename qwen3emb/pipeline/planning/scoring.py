"""Estimates of the stages that generate, encode and judge texts, and of those without a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.config.resources import ENGINES_PER_READER
from qwen3emb.config.run import require_section
from qwen3emb.pipeline.planning.datasets import DatasetSize, passage_lengths, task_shares
from qwen3emb.pipeline.planning.flops import Tokens, forward_flops
from qwen3emb.pipeline.planning.generation import Engine, generation_flops
from qwen3emb.pipeline.planning.memory import Memory, encoding_memory
from qwen3emb.pipeline.planning.prompts import requests
from qwen3emb.pipeline.planning.shapes import ModelShape
from qwen3emb.pipeline.planning.work import PASS_TOKENS, Planner, StageEstimate, gigabytes
from qwen3emb.synthesis.drafts import draft_config
from qwen3emb.text.evaluation_sets import asked_passages

__all__ = ["SCORING"]

_READ_CHARACTERS = 4000  # of a passage, by the model that finds personas (synthesis.retrieval_model)


def _corpus(p: Planner) -> StageEstimate:
    """Reading, cutting and comparing texts; how many rows there are to read is not known before."""
    kept = p.corpus.rows
    seconds = p.assumed.start_seconds + kept / (p.assumed.read_rows_per_second * p.cfg.corpus.workers)
    return StageEstimate("corpus", kept, seconds=seconds, notes=p.corpus.notes)


def _labelled(p: Planner) -> StageEstimate:
    rows = sum(d.rows for d in p.datasets if d.name in p.cfg.labelled.sets or d.name in p.cfg.labelled.use)
    return StageEstimate("labelled", rows, seconds=p.assumed.start_seconds + rows / p.assumed.read_rows_per_second)


def _synthesize(p: Planner) -> StageEstimate:
    cfg = require_section(p.cfg.synthesize)
    name, shape = str(p.cfg.models.generator), p.shape(str(p.cfg.models.generator))
    asked = min(cfg.max_passages or p.corpus.passages, p.corpus.passages) * cfg.queries_per_passage
    shown = passage_lengths(p.cfg, p.assumed).capped(cfg.max_passage_tokens)
    work = [
        (asked * share, request)
        for task, share in task_shares(p.cfg).items()
        for request in requests(p, cfg, task, shown)
    ]
    for count in asked_passages(p.cfg).values():
        drafts = draft_config(cfg, require_section(cfg.evaluation))
        work += [(count * drafts.queries_per_passage, r) for r in requests(p, drafts, "retrieval", shown)]
    again = 1 + p.assumed.asked_again
    tokens = again * sum(times * (r.prompt + r.answer) for times, r in work)
    pairs = sum(d.rows for d in p.datasets if d.name.startswith("synthetic"))
    if shape is None:
        return StageEstimate(
            "synthesize", pairs, name, tokens, notes=["the generator is a server: its time is not counted"]
        )
    flops = again * sum(times * generation_flops(shape, r.prompt, r.answer) for times, r in work)
    readers = math.ceil(cfg.engines / ENGINES_PER_READER) * cfg.reader_gpus
    gpus = (cfg.engines * cfg.tensor_parallel + readers) * (p.gpu is not None)
    estimate = StageEstimate("synthesize", pairs, name, tokens, flops, gpus)
    if p.gpu is None:
        seconds = _on_cores(p, cfg, flops) + p.assumed.start_seconds
        memory = Memory(weights=p.width * shape.parameters(), kv_cache=cfg.kv_cache_gb * 2**30)
        return replace(estimate, seconds=seconds, memory=memory)
    engine = Engine(shape, p.gpu, cfg.tensor_parallel, cfg.max_num_seqs, p.assumed)
    busy = again * sum(times * engine.seconds(r.prompt, r.answer, r.read) for times, r in work) / cfg.engines
    return p.checked(_with_engines(p, cfg, replace(estimate, seconds=busy), engine), "synthesize.engines")


def _on_cores(p: Planner, cfg: SynthesizeConfig, flops: float) -> float:
    return flops / (min(p.cores, cfg.engines * cfg.threads) * p.assumed.cpu_gflops * 1e9)


def _with_engines(p: Planner, cfg: SynthesizeConfig, estimate: StageEstimate, engine: Engine) -> StageEstimate:
    """With memory, the start of the engines, the personas' search beside them, and what does not fit."""
    problems, notes, parts = [], [], cfg.tensor_parallel
    gpu, whole = engine.gpu, gigabytes(engine.gpu.memory)
    if engine.shape.heads % parts:
        problems.append(f"synthesize.tensor_parallel is {parts}, which does not divide {engine.shape.heads} heads")
    if engine.kv_cache <= 0:
        problems.append(
            f"synthesize: {gigabytes(engine.weights)} of weights of {estimate.model} and a KV cache do not fit on an "
            f"{gpu.name} with {whole}: raise synthesize.tensor_parallel, or take an fp8 model"
        )
    elif engine.kv_tokens < cfg.max_model_len:
        problems.append(
            f"synthesize: beside the weights of {estimate.model} the KV cache of an {gpu.name} holds "
            f"{engine.kv_tokens:,.0f} tokens, fewer than synthesize.max_model_len {cfg.max_model_len:,}: raise "
            "synthesize.tensor_parallel or lower synthesize.max_model_len"
        )
    memory = Memory(engine.weights, kv_cache=max(0.0, engine.kv_cache), buffers=p.assumed.engine_working_gb * 1e9)
    start = p.assumed.engine_start_seconds + engine.weights / (p.assumed.load_gb_per_second * 1e9)
    personas = _persona_seconds(p, cfg)
    generated = estimate.seconds or 0.0
    if personas > generated:
        readers, each = math.ceil(cfg.engines / ENGINES_PER_READER), "GPU" if cfg.reader_gpus else "CPU core"
        notes.append(
            f"synthesize: {readers} reader{'s' * (readers > 1)} with one {each} each "
            f"find personas for all passages with {p.cfg.models.retrieval}, which takes {personas / 3600:,.0f} h and "
            f"longer than the generator's {generated / 3600:,.1f} h: set synthesize.reader_gpus, take a smaller "
            "models.retrieval, or a server"
        )
    return replace(estimate, seconds=start + max(generated, personas), memory=memory, problems=problems, notes=notes)


def _persona_seconds(p: Planner, cfg: SynthesizeConfig) -> float:
    """The readers encode the passages on one CPU core each or on their GPUs, beside the engines."""
    shape = p.shape(str(p.cfg.models.retrieval))
    if shape is None:
        return 0.0
    passages = min(cfg.max_passages or p.corpus.passages, p.corpus.passages) + sum(asked_passages(p.cfg).values())
    context = 512 if not shape.gated else math.inf  # BERT's positions
    tokens = p.documents(
        passages,
        passage_lengths(p.cfg, p.assumed),
        int(min(context, _READ_CHARACTERS / p.assumed.characters_per_token)),
    )
    readers, flops = math.ceil(cfg.engines / ENGINES_PER_READER), forward_flops(shape, tokens)
    if p.gpu is not None and cfg.reader_gpus:
        return p.seconds(flops, readers)
    return flops / (min(readers, p.cores) * p.assumed.cpu_gflops * 1e9)


def _encoding(
    p: Planner, name: str, rows: float, model: str, work: list[tuple[ModelShape | None, Tokens]], workers: int
) -> StageEstimate:
    """A stage that runs models forward on a pool of workers, one model after the other."""
    tokens = sum(part.count for _, part in work)
    served = [shape for shape, _ in work if shape is None]
    shapes = [(shape, part) for shape, part in work if shape is not None]
    flops = sum(forward_flops(shape, part) for shape, part in shapes)
    loads = sum(p.start_seconds(p.width * shape.parameters(False)) for shape, _ in shapes)
    seconds = loads + p.seconds(flops, workers)
    memories = [encoding_memory(shape, PASS_TOKENS, p.width, False) for shape, _ in shapes]
    memory = max(memories, key=lambda m: m.total, default=None)
    notes = [f"{name}: {model} is a server: its time is not counted"] if served else []
    return StageEstimate(name, rows, model, tokens, flops, p.demand(workers), seconds, memory, notes=notes)


def _scoring_model(p: Planner, name: str) -> tuple[str, ModelShape | None]:
    chosen = p.cfg.models.base if name == "weak" else name
    return chosen, p.shape(chosen)


def _filter(p: Planner) -> StageEstimate:
    cfg = p.cfg.filter
    model, shape = _scoring_model(p, cfg.model)
    tokens = Tokens(0, 0, 0)
    for d in p.datasets:
        tokens += p.queries(d.scored, d.query, cfg.max_tokens, p.cfg.models.instruction)
        tokens += p.documents(d.scored, d.document, cfg.max_tokens)
    kept = sum(d.kept for d in p.datasets if d.name.startswith("synthetic"))
    return p.checked(_encoding(p, "filter", kept, model, [(shape, tokens)], cfg.workers), "filter.workers")


def _mine(p: Planner) -> StageEstimate:
    """Queries and documents are encoded, then compared on CPUs; a veto judges the candidates."""
    cfg = p.cfg.mine
    model, shape = _scoring_model(p, cfg.model)
    mined = [d for d in p.datasets if d.corpus and d.searched]
    tokens, products = Tokens(0, 0, 0), 0.0
    for d in mined:
        tokens += p.queries(d.kept, d.query, cfg.max_tokens, p.cfg.models.instruction)
        tokens += p.documents(d.corpus, d.searched or d.document, cfg.max_tokens)
        products += 2 * d.kept * d.corpus * (shape.hidden if shape else 1024)
    work = [(shape, tokens), *_veto(p, mined)]
    estimate = _encoding(p, "mine", sum(d.kept for d in p.datasets), model, work, cfg.workers)
    searching = products / (p.cores * p.assumed.search_gflops * 1e9)
    notes = list(estimate.notes)
    if searching > 600:
        notes.append(
            f"mine: comparing all queries with all documents takes {p.cores:,.0f} CPU cores {searching / 3600:,.1f} h "
            f"({products:.1e} FLOPs), in which its GPUs are idle"
        )
    estimate = replace(estimate, seconds=(estimate.seconds or 0) + searching, notes=notes)
    return p.checked(estimate, "mine.workers")


def _veto(p: Planner, mined: list[DatasetSize]) -> list[tuple[ModelShape | None, Tokens]]:
    rules = p.cfg.mine.veto
    if rules is None:
        return []
    tokens = Tokens(0, 0, 0)
    for d in mined:
        candidates, query = p.cfg.mine.negatives * rules.candidates, d.query.capped(rules.max_tokens)
        length = d.searched or d.document
        tokens += p.judged(d.kept, query, candidates, length, rules.max_tokens, p.cfg.models.instruction)
    return [(p.shape(rules.model), tokens)]


def _merge(p: Planner) -> StageEstimate:
    """On CPUs, a task for each of the two models: the checkpoints and the base are read, one is written."""
    bases = [(p.cfg.models.base, False)]
    bases += [(p.cfg.models.reranker_base or p.cfg.models.base, True)] if p.cfg.reranker else []
    shapes = [(shape, head) for name, head in bases if (shape := p.shape(name))]
    tensors = sum(shape.tensors + (head and not shape.tied) for shape, head in shapes)
    moved = max((p.cfg.merge.last + 2) * p.width * shape.parameters(head) for shape, head in shapes)
    seconds = p.assumed.start_seconds + moved / (p.assumed.merge_gb_per_second * 1e9)
    notes = (
        ["merge: the candidates that are scored on the dev set are not counted"] if p.cfg.merge.keep == "best" else []
    )
    return StageEstimate("merge", tensors, seconds=seconds, notes=notes)


def _evaluated_sets(p: Planner) -> list[tuple[float, DatasetSize, float]]:
    """(queries, lengths, documents to search in) of each set that models are evaluated on."""
    cfg = p.cfg
    named = {d.name: d for d in p.datasets}
    if cfg.evaluate.dataset != "heldout":
        d = max(p.datasets, key=lambda d: d.kept)
        return [(p.assumed.evaluation_queries, d, p.assumed.evaluation_documents)]
    sets = []
    if p.corpus.heldout_queries and "docstrings" in named:
        sets.append((float(p.corpus.heldout_queries), named["docstrings"], float(p.corpus.heldout_documents)))
    for name, settings in cfg.labelled.sets.items():
        if settings.heldout_share and name in named:
            sets.append((float(settings.max_heldout_queries), named[name], named[name].rows))
    if "heldout" in asked_passages(cfg) and "synthetic" in named:
        queries = require_section(require_section(cfg.synthesize).evaluation).heldout_queries
        sets.append((float(queries), named["synthetic"], p.corpus.passages))
    return sets


def _evaluate(p: Planner) -> StageEstimate:
    """Every model of the run encodes every set; the reranker judges the top of the merged model's ranking."""
    cfg, base = p.cfg.evaluate, p.cfg.models.base
    present = {"base": True, "supervised": True, "weak": p.cfg.weak, "distilled": p.cfg.distill}
    models = 1 + sum(bool(present[name]) for name in cfg.compare)
    sets, encoded, judged = _evaluated_sets(p), Tokens(0, 0, 0), Tokens(0, 0, 0)
    for queries, d, documents in sets:
        encoded += p.queries(queries, d.query, cfg.max_query_tokens, p.cfg.models.instruction)
        encoded += p.documents(documents, d.document, cfg.max_document_tokens)
        asked = d.query.capped(cfg.max_query_tokens)
        top = min(cfg.rerank_top, documents)
        judged += p.judged(queries, asked, top, d.document, cfg.rerank_max_tokens, p.cfg.models.instruction)
    if cfg.rerank_weight is None and sets and p.corpus.dev_queries:
        d = sets[0][1]
        encoded += p.documents(p.corpus.dev_documents / models, d.document, cfg.max_document_tokens)
        asked = d.query.capped(cfg.max_query_tokens)
        judged += p.judged(
            p.corpus.dev_queries, asked, cfg.rerank_dev_top, d.document, cfg.rerank_max_tokens, p.cfg.models.instruction
        )
    shape = p.shape(base)
    work: list[tuple[ModelShape | None, Tokens]] = [(shape, encoded) for _ in range(models)]
    work += [(p.shape(p.cfg.models.reranker_base or base), judged)] if p.cfg.reranker else []
    estimate = _encoding(p, "evaluate", sets[0][0] if sets else 0, base, work, cfg.workers)
    notes = list(estimate.notes)
    if cfg.dataset != "heldout":
        notes.append(
            f"evaluate: {cfg.dataset} is counted as {p.assumed.evaluation_queries:,} queries and "
            f"{p.assumed.evaluation_documents:,} documents (--assume evaluation_queries=..., evaluation_documents=...)"
        )
    return p.checked(replace(estimate, notes=notes), "evaluate.workers")


def _index(p: Planner) -> StageEstimate:
    cfg = p.cfg.index
    named = {d.name: d for d in p.datasets}
    if cfg.source == "heldout" and p.corpus.heldout_documents and "docstrings" in named:
        documents, length = float(p.corpus.heldout_documents), named["docstrings"].document
    elif cfg.source in ("heldout", "passages"):
        documents, length = p.corpus.passages, passage_lengths(p.cfg, p.assumed)
    else:
        documents, length = float(p.assumed.evaluation_documents), passage_lengths(p.cfg, p.assumed)
    work = [(p.shape(p.cfg.models.base), p.documents(documents, length, cfg.max_tokens))]
    return p.checked(_encoding(p, "index", documents, p.cfg.models.base, work, cfg.workers), "index.workers")


SCORING: dict[str, Callable[[Planner], StageEstimate]] = {
    "corpus": _corpus,
    "labelled": _labelled,
    "synthesize": _synthesize,
    "filter": _filter,
    "mine": _mine,
    "merge": _merge,
    "evaluate": _evaluate,
    "index": _index,
}
"""Stage -> its estimate, all but the trainings."""
