"""Estimates of the training stages: tokens of a step, FLOPs with everything that is computed twice, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qwen3emb.config.datasets import is_synthetic
from qwen3emb.config.run import require_section
from qwen3emb.config.training import (
    RERANKER,
    DatasetConfig,
    DistillConfig,
    TrainEmbeddingConfig,
    TrainRerankerConfig,
    TrainSupervisedConfig,
)
from qwen3emb.pipeline.planning.datasets import DatasetSize
from qwen3emb.pipeline.planning.flops import (
    Adapters,
    Passes,
    Tokens,
    forward_flops,
    training_flops,
)
from qwen3emb.pipeline.planning.memory import Memory, Trained, activation_bytes, training_memory
from qwen3emb.pipeline.planning.shapes import ModelShape
from qwen3emb.pipeline.planning.work import Planner, StageEstimate
from qwen3emb.text.instructions import dataset_settings, labelled_datasets

__all__ = ["embedding_estimate", "reranker_estimate"]

_TrainConfig = TrainEmbeddingConfig | TrainRerankerConfig


@dataclass(frozen=True)
class _Step:
    """The global batch of one dataset.

    Attributes:
        share: of all steps that are of this dataset.
        tokens: of all workers.
        longest: tokens of the largest micro-batch that cannot be split.
        answers: places with logits.
        texts: vectors that the loss compares.
    """

    share: float
    tokens: Tokens
    longest: float = 0
    answers: float = 0
    texts: float = 0


def embedding_estimate(p: Planner, name: str) -> StageEstimate:
    """`weak`, `supervised` or `distill`."""
    cfg: TrainEmbeddingConfig = require_section(getattr(p.cfg, name))
    datasets = [
        d for d in p.datasets if (is_synthetic(d.name) if name == "weak" else cfg.synthetic or not is_synthetic(d.name))
    ]
    rows = {d.name: d.rows if name == "weak" else d.kept for d in datasets}
    settings = _settings(p, cfg, datasets)
    shares = _shares(rows, {n: s.weight for n, s in settings.items()}, cfg.mixture_temperature)
    most = _hard_negatives(cfg)
    steps = [_embedding_step(p, cfg, d, settings[d.name], shares[d.name], rows[d.name], most) for d in datasets]
    shape = p.shape(p.cfg.models.base)
    assert shape is not None, "models.base is a server"
    validation = _validation(p, cfg)
    estimate = _training(p, name, cfg, shape, steps, forward_flops(shape, validation), head=False)
    teacher, note = _teacher(p, cfg, sum(rows.values()), datasets, settings)
    seconds = (estimate.seconds or 0) + teacher
    estimate = replace(estimate, rows=sum(rows.values()), seconds=seconds, notes=[*estimate.notes, *note])
    return p.checked(estimate, f"{name}.num_workers")


def _hard_negatives(cfg: TrainEmbeddingConfig) -> int:
    if isinstance(cfg, DistillConfig) and cfg.teacher.model == RERANKER:
        return max(cfg.hard_negatives, cfg.teacher.candidates)
    return cfg.hard_negatives


def _settings(p: Planner, cfg: TrainEmbeddingConfig, datasets: Sequence[DatasetSize]) -> dict[str, DatasetConfig]:
    names = {d.name for d in datasets}
    sets = labelled_datasets(p.cfg) if isinstance(cfg, TrainSupervisedConfig) else {}
    found = dataset_settings(sets, names, cfg)
    return {name: found.get(name, DatasetConfig()) for name in names}


def _shares(rows: Mapping[str, float], weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Share of the batches of each dataset (`training.mixture`)."""
    parts = {
        name: weights.get(name, 1.0) * count ** (1 / temperature) if count else 0.0 for name, count in rows.items()
    }
    total = sum(parts.values()) or 1.0
    return {name: part / total for name, part in parts.items()}


def _embedding_step(
    p: Planner, cfg: TrainEmbeddingConfig, d: DatasetSize, own: DatasetConfig, share: float, rows: float, most: int
) -> _Step:
    """A batch of one dataset: a query, its positive and the hard negatives it has, for each row."""
    count = min(cfg.batch_size, rows)
    hard = most if own.hard_negatives is None else own.hard_negatives
    found = 1.0 if d.task == "classification" else p.assumed.negatives_found
    negatives = 0.0 if d.task in ("sts", "bitext") else hard * found
    limits = own.max_query_tokens or cfg.max_query_tokens, own.max_document_tokens or cfg.max_document_tokens
    instruction = p.cfg.models.instruction if own.instruction is None else own.instruction
    pack = min(cfg.pack_tokens, cfg.token_budget)
    share_of_rank = count / cfg.least_workers * d.query.capped(limits[0])
    packs = min(count, cfg.least_workers * math.ceil(share_of_rank / pack)) if count else 1
    tokens = p.queries(count, d.query, limits[0], instruction, packs)
    tokens += p.documents(count * (1 + negatives), d.document, limits[1])
    return _Step(share, tokens, longest=max(limits), texts=count * (2 + negatives))


def _validation(p: Planner, cfg: _TrainConfig) -> Tokens:
    """The dev set at every checkpoint: docstrings' functions, where the corpus holds modules out."""
    if not p.corpus.dev_queries or isinstance(cfg, TrainRerankerConfig):
        return Tokens(0, 0, 0)
    docstrings = next((d for d in p.datasets if d.name == "docstrings"), None)
    if docstrings is None:
        return Tokens(0, 0, 0)
    times = _checkpoints(cfg)
    queries = p.queries(p.corpus.dev_queries, docstrings.query, cfg.max_query_tokens, p.cfg.models.instruction)
    return (queries + p.documents(p.corpus.dev_documents, docstrings.document, cfg.max_document_tokens)).times(times)


def _checkpoints(cfg: _TrainConfig) -> int:
    every = cfg.checkpoint_every
    return 1 if not every else cfg.steps // every + (cfg.steps % every > 0)


def _teacher(
    p: Planner,
    cfg: TrainEmbeddingConfig,
    rows: float,
    datasets: Sequence[DatasetSize],
    settings: Mapping[str, DatasetConfig],
) -> tuple[float, list[str]]:
    """(seconds that a teacher takes before the training, a sentence about it)."""
    teacher = cfg.teacher
    if teacher is None or not datasets:
        return 0.0, []
    main = max(datasets, key=lambda d: d.kept)
    if teacher.model == RERANKER:
        section = require_section(p.cfg.reranker)
        candidates = 1 + _hard_negatives(cfg) * p.assumed.negatives_found
        query = main.query.capped(section.max_query_tokens)
        tokens = p.judged(rows, query, candidates, main.document, section.max_tokens, p.cfg.models.instruction)
        shape = p.shape(p.cfg.models.reranker_base or p.cfg.models.base)
    else:
        tokens = p.queries(rows, main.query, cfg.max_query_tokens, p.cfg.models.instruction)
        tokens += p.documents(rows * (1 + cfg.hard_negatives), main.document, cfg.max_document_tokens)
        shape = p.shape(teacher.model)
    if shape is None:
        return 0.0, [f"the teacher {teacher.model} is a server: its time is not counted"]
    seconds = p.seconds(forward_flops(shape, tokens), teacher.workers)
    workers = f"{teacher.workers} worker{'s' * (teacher.workers != 1)}"
    return seconds, [f"its teacher reads {tokens.count:,.0f} tokens first, on {workers}"]


def reranker_estimate(p: Planner, name: str) -> StageEstimate:
    """`reranker` or `reranker_weak`."""
    cfg: TrainRerankerConfig = require_section(getattr(p.cfg, name))
    datasets = [d for d in p.datasets if d.task == "retrieval" and (name == "reranker" or is_synthetic(d.name))]
    found = p.assumed.negatives_found
    # Rows without any hard negative are left out; those that are found are taken to stand in as many rows.
    rows = {d.name: d.kept * min(1.0, found) for d in datasets}
    shares = _shares(rows, {}, 1.0)
    steps = [_reranker_step(p, cfg, d, shares[d.name], rows[d.name]) for d in datasets]
    shape = p.shape(p.cfg.models.reranker_base or p.cfg.models.base)
    assert shape is not None, "models.reranker_base is a server"
    estimate = _training(p, name, cfg, shape, steps, 0.0, head=True)
    notes = [*estimate.notes]
    if cfg.teacher:
        notes.append(f"the time of its teacher {cfg.teacher.model} is not counted")
    return p.checked(replace(estimate, rows=sum(rows.values()), notes=notes), f"{name}.num_workers")


def _reranker_step(p: Planner, cfg: TrainRerankerConfig, d: DatasetSize, share: float, rows: float) -> _Step:
    """Trees of a query and its documents: its positive, the hard negatives, and random ones."""
    count = min(cfg.queries_per_step, rows)
    documents = 1 + cfg.negatives + cfg.random_negatives
    query = d.query.capped(cfg.max_query_tokens)
    tokens = p.judged(count, query, documents, d.document, cfg.max_tokens, p.cfg.models.instruction)
    # The longest that a query's tree can be: it is never split.
    shared = p.judged(1, cfg.max_query_tokens, 0, d.document, cfg.max_tokens, p.cfg.models.instruction).count
    longest = shared + documents * min(cfg.max_tokens - shared, d.document.longest)
    return _Step(share, tokens, longest, answers=count * documents)


def _training(
    p: Planner, name: str, cfg: _TrainConfig, shape: ModelShape, steps: Sequence[_Step], more: float, head: bool
) -> StageEstimate:
    """Tokens, FLOPs, memory and seconds of all steps; `more` are FLOPs of validation."""
    flops, tokens = more, 0.0
    for step in steps:
        passes = _passes(cfg, step, shape, head)
        flops += cfg.steps * step.share * training_flops(shape, step.tokens, passes, step.answers)
        tokens += cfg.steps * step.share * step.tokens.count
    gpus = p.demand(cfg.least_workers)
    weights = p.width * shape.parameters(head)
    seconds = p.seconds(flops, cfg.least_workers, training=True) + p.start_seconds(weights)
    memory = _memory(p, cfg, shape, steps, head)
    model = p.cfg.models.reranker_base or p.cfg.models.base if head else p.cfg.models.base
    return StageEstimate(name, 0, model, tokens, flops, gpus, seconds, memory)


def _passes(cfg: _TrainConfig, step: _Step, shape: ModelShape, head: bool) -> Passes:
    adapters = Adapters(cfg.lora.rank, cfg.lora.modules) if cfg.lora else None
    # The reranker's loss is a sum over queries and needs no cache.
    cached = not head and step.tokens.count / cfg.least_workers > cfg.token_budget
    return Passes(cached, cfg.activation_checkpointing, adapters)


def _memory(p: Planner, cfg: _TrainConfig, shape: ModelShape, steps: Sequence[_Step], head: bool) -> Memory:
    """The worst step's activations, beside what does not depend on the step."""
    parameters = float(shape.parameters(head))
    trainable = float(shape.adapter_parameters(cfg.lora.rank, cfg.lora.modules)) if cfg.lora else parameters
    total = parameters + (trainable if cfg.lora else 0)
    width = 4 if cfg.optimizer.dtype == "float32" else p.width
    fixed = training_memory(Trained(total, trainable), cfg.optimizer, cfg.least_workers, width)
    kept = max((_kept_tokens(cfg, step, head) for step in steps), default=0.0)
    longest = max((step.longest for step in steps), default=0.0)
    one_pass = max(min(cfg.pack_tokens, cfg.token_budget), longest)
    activations = activation_bytes(shape, kept, width, one_pass if cfg.activation_checkpointing else 0)
    activations += max((_loss_bytes(cfg, step, shape, kept) for step in steps), default=0.0)
    return replace(fixed, activations=activations)


def _kept_tokens(cfg: _TrainConfig, step: _Step, head: bool) -> float:
    """Tokens whose activations a worker keeps at once: its whole share within the budget, else one pass."""
    share, one_pass = step.tokens.count / cfg.least_workers, min(cfg.pack_tokens, cfg.token_budget)
    if head:  # one pass after the other, of whole trees
        return max(step.longest, min(one_pass, share))
    return share if share <= cfg.token_budget else max(one_pass, step.longest)


def _loss_bytes(cfg: _TrainConfig, step: _Step, shape: ModelShape, kept: float) -> float:
    """Logits of a pass with their gradient, or the vectors of the global batch and a tile of their scores."""
    if isinstance(cfg, TrainRerankerConfig):
        per_token = step.answers / step.tokens.count if step.tokens.count else 0.0
        return 10 * kept * per_token * shape.vocabulary  # 16 bits, float32 and its gradient
    return 4 * step.texts * (3 * shape.hidden + 4 * cfg.loss_tile)
