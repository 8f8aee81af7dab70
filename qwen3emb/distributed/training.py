"""The training stages: which rows, which starting model, which validation set."""

from __future__ import annotations

from pathlib import Path

from qwen3emb.artifact import StageResult
from qwen3emb.distributed.trainer import TrainJob, fit
from qwen3emb.evaluate.retrieval import RetrievalSet, read_retrieval_set
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.stored import final_model
from qwen3emb.pipeline import StageContext
from qwen3emb.train.rows import TrainingRow, by_dataset, check_datasets, checked, rows_from_pairs, rows_from_training
from qwen3emb.train.tasks import EmbeddingTask, RerankerTask

__all__ = ["train_reranker", "train_supervised", "train_weak"]

VALIDATION_QUERIES = 16


def train_weak(ctx: StageContext) -> StageResult:
    """Stage 1: contrastive training on all synthetic pairs (paper section 4)."""
    rows = rows_from_pairs(ctx.input("synthesize").read_table("pairs"))
    return _train_embedding(ctx, rows, str(resolve_model(ctx.cfg.models.base)))


def train_supervised(ctx: StageContext) -> StageResult:
    """Stage 2: labelled and filtered synthetic pairs with hard negatives, from the weak model."""
    cfg = ctx.cfg.supervised
    rows = rows_from_training(ctx.input("mine").read_table("rows"), cfg.hard_negatives, cfg.synthetic)
    return _train_embedding(ctx, rows, str(final_model(ctx.input("weak")).local()))


def train_reranker(ctx: StageContext) -> StageResult:
    """Stage 2 of the reranker: yes / no fine-tuning on the mined rows, a few of them held out for validation."""
    cfg = ctx.cfg.reranker
    rows = rows_from_training(ctx.input("mine").read_table("rows"), cfg.negatives)
    usable = [row for row in rows if row.negatives]
    dev, train = usable[:VALIDATION_QUERIES], usable[VALIDATION_QUERIES:]
    checked(train, cfg.queries_per_step, ctx.out.uri)
    base = resolve_model(ctx.cfg.models.reranker_base or ctx.cfg.models.base)
    task = RerankerTask(cfg, base, ctx.cfg.models.instruction, dev)
    metrics = fit(TrainJob(task, by_dataset(train), ctx.cfg.seed, ctx.out.uri, ctx.cfg.cluster.gpus_per_worker))
    skipped = {"no hard negatives": len(rows) - len(usable), "validation": len(dev)}
    return StageResult(len(rows), len(train), skipped, metrics)


def _train_embedding(ctx: StageContext, rows: list[TrainingRow], model_dir: str) -> StageResult:
    cfg = ctx.cfg.weak if ctx.stage.name == "weak" else ctx.cfg.supervised
    checked(rows, cfg.batch_size, ctx.out.uri)
    check_datasets(rows, {name: own.weight for name, own in cfg.datasets.items()}, f"{ctx.stage.name}.datasets")
    dev: RetrievalSet = read_retrieval_set(ctx.input("corpus") / "dev")

    task = EmbeddingTask(cfg, Path(model_dir), ctx.cfg.models.end_token, ctx.cfg.models.instruction, dev)
    metrics = fit(TrainJob(task, by_dataset(rows), ctx.cfg.seed, ctx.out.uri, ctx.cfg.cluster.gpus_per_worker))
    return StageResult(len(rows), len(rows), {}, metrics)
