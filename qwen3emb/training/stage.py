"""The training stages: their rows, starting models and validation sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen3emb.config.datasets import SYNTHETIC_DATASETS, trained_as
from qwen3emb.config.run import RunConfig, require_section
from qwen3emb.config.training import DatasetConfig, TrainEmbeddingConfig
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.records import PAIR, TRAINING_ROW
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.stored import final_model
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.instructions import dataset_settings, instructions, labelled_datasets
from qwen3emb.text.retrieval_set import RetrievalSet, read_retrieval_set
from qwen3emb.training.loop import TrainJob, fit
from qwen3emb.training.selection import (
    EVALUATED,
    by_dataset,
    check_datasets,
    check_stop,
    checked,
    evaluated_queries,
    graded,
    reranker_rows,
    rows_from_pairs,
    rows_from_training,
    without_queries,
)
from qwen3emb.training.tasks import EmbeddingTask, RerankerTask
from qwen3emb.training.teacher import with_teacher_scores

__all__ = ["train_reranker", "train_supervised", "train_weak"]


def train_weak(ctx: StageContext[RunConfig]) -> StageResult:
    """Stage 1: contrastive training on all synthetic pairs (paper section 4)."""
    table = ctx.inputs["synthesize"].read_table("pairs", PAIR)
    rows = rows_from_pairs(table, graded(trained_as(set(SYNTHETIC_DATASETS))))
    return _train_embedding(ctx, rows, require_section(ctx.cfg.weak), {}, str(resolve_model(ctx.cfg.models.base)))


def train_supervised(ctx: StageContext[RunConfig]) -> StageResult:
    """Stage 2: labelled and filtered synthetic pairs with hard negatives, from the weak model where the run has one."""
    cfg = ctx.cfg.supervised
    table = ctx.inputs["mine"].read_table("rows", TRAINING_ROW)
    sets = labelled_datasets(ctx.cfg)
    settings = dataset_settings(sets, set(table["dataset"].to_pylist()), cfg)
    # A dataset may have its own number of negatives, more than the stage's (`DatasetConfig.hard_negatives`).
    most = max([cfg.hard_negatives, *(dataset.hard_negatives or 0 for dataset in settings.values())])
    rows = rows_from_training(table, most, cfg.synthetic, graded(settings))
    weak = ctx.inputs.get("weak")
    start = final_model(weak).local() if weak else resolve_model(ctx.cfg.models.base)
    return _train_embedding(ctx, rows, cfg, sets, str(start))


def train_reranker(ctx: StageContext[RunConfig], say: Callable[[str], None]) -> StageResult:
    """Fine-tune the reranker (yes / no) on the mined rows; a sample of their queries is held out for validation.

    Stage `reranker_weak` takes the synthetic rows alone; `reranker` starts from its model where the run has that stage.
    `say` is called with each line of progress.
    """
    name = ctx.name
    cfg = require_section(ctx.cfg.reranker_weak if name == "reranker_weak" else ctx.cfg.reranker)
    table = ctx.inputs["mine"].read_table("rows", TRAINING_ROW)
    chosen = reranker_rows(table, ctx.cfg, name, evaluated_queries(ctx.inputs))
    checked(chosen.train, cfg.queries_per_step, ctx.out.uri)
    check_stop(cfg.stop_after, len(chosen.dev), name, f"validation_queries {cfg.validation_queries}")
    say(f"{name}: {chosen.summary()}")
    query_instructions = instructions(ctx.cfg, {row.dataset for row in (*chosen.train, *chosen.dev)})
    train = with_teacher_scores(chosen.train, cfg, ctx.cfg, query_instructions, ctx.out, say)
    model, trunk = _reranker_start(ctx, cfg.start)
    task = RerankerTask(cfg, model, ctx.cfg.models.instruction, chosen.dev, query_instructions, trunk)
    metrics = fit(TrainJob(task, by_dataset(train), ctx.cfg.seed, ctx.out.uri, ctx.cfg.cluster.gpus_per_worker))
    return StageResult(chosen.rows, len(train), chosen.left_out, metrics)


def _reranker_start(ctx: StageContext[RunConfig], start: str | None) -> tuple[Path, Path | None]:
    """(the model that a stage of the reranker starts from, the model whose trunk it takes instead of its own)."""
    if start is None and "reranker_weak" in ctx.inputs:
        return Path(final_model(ctx.inputs["reranker_weak"]).local()), None
    base = Path(resolve_model(ctx.cfg.models.reranker_base or ctx.cfg.models.base))
    if start == "embedding":
        return base, Path(final_model(ctx.inputs["supervised"]).local())
    return (base if start in (None, "base") else Path(resolve_model(start))), None


def _train_embedding(
    ctx: StageContext[RunConfig],
    rows: list[TrainingRow],
    cfg: TrainEmbeddingConfig,
    sets: dict[str, DatasetConfig],
    model_dir: str,
) -> StageResult:
    present = {row.dataset for row in rows}
    cfg = cfg.model_copy(update={"datasets": dataset_settings(sets, present, cfg)})
    every, rows = len(rows), without_queries(rows, evaluated_queries(ctx.inputs))
    checked(rows, cfg.batch_size, ctx.out.uri)
    check_datasets(rows, {name: settings.weight for name, settings in cfg.datasets.items()}, f"{ctx.name}.datasets")
    dev: RetrievalSet = read_retrieval_set(ctx.inputs["corpus"] / "dev")
    check_stop(cfg.stop_after, len(dev.queries), ctx.name, "corpus.dev_share")
    task = EmbeddingTask(cfg, Path(model_dir), ctx.cfg.models.end_token, ctx.cfg.models.instruction, dev)
    metrics = fit(TrainJob(task, by_dataset(rows), ctx.cfg.seed, ctx.out.uri, ctx.cfg.cluster.gpus_per_worker))
    left_out = {EVALUATED: every - len(rows)} if len(rows) < every else {}
    return StageResult(every, len(rows), left_out, metrics)
