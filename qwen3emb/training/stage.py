"""The training stages: their rows, starting models and validation sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from qwen3emb.config.datasets import SYNTHETIC_DATASETS, is_synthetic, trained_as
from qwen3emb.config.run import RunConfig, require_section, reranker_start
from qwen3emb.config.training import (
    RERANKER,
    DatasetConfig,
    DistillTeacherConfig,
    TrainEmbeddingConfig,
    TrainSupervisedConfig,
)
from qwen3emb.core.artifact import StageResult
from qwen3emb.core.context import StageContext
from qwen3emb.core.records import PAIR, TRAINING_ROW
from qwen3emb.model.stored import final_model
from qwen3emb.objective.embedding_step import StepSettings
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.evaluation_sets import first_set
from qwen3emb.text.instructions import dataset_settings, instructions, labelled_datasets
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
from qwen3emb.training.teacher import TEACHER, Judge, with_teacher_scores, with_teacher_vectors

__all__ = ["train_distilled", "train_reranker", "train_supervised", "train_weak"]

_Say = Callable[[str], None]


def train_weak(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Stage 1: contrastive training on all synthetic pairs (paper section 4)."""
    table = ctx.inputs["synthesize"].read_table("pairs", PAIR)
    rows = rows_from_pairs(table, graded(trained_as(set(SYNTHETIC_DATASETS))))
    return _train_embedding(ctx, rows, require_section(ctx.cfg.weak), {}, str(ctx.cfg.models.base), say)


def train_supervised(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """Stage 2: labelled and filtered synthetic pairs with hard negatives, from the weak model where the run has one."""
    weak = ctx.inputs.get("weak")
    start = final_model(weak).uri if weak else str(ctx.cfg.models.base)
    return _train_on_mined(ctx, ctx.cfg.supervised, start, say)


def train_distilled(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
    """The supervised model on the same rows, whose documents' order the reranker (or another model) teaches."""
    start = final_model(ctx.inputs["supervised"]).uri
    return _train_on_mined(ctx, _distill_section(ctx.cfg), start, say)


def _distill_section(run: RunConfig) -> TrainSupervisedConfig:
    """The section `distill` with the datasets of `supervised` beneath its own, and the candidates as hard negatives."""
    cfg = require_section(run.distill)
    inherited = run.supervised.datasets
    datasets = {name: own for name, own in inherited.items() if cfg.synthetic or not is_synthetic(name)}
    for name, own in cfg.datasets.items():
        given = {key: getattr(own, key) for key in own.model_fields_set}
        datasets[name] = datasets[name].model_copy(update=given) if name in datasets else own
    most = max(cfg.hard_negatives, cfg.teacher.candidates if cfg.teacher.model == RERANKER else 0)
    return cfg.model_copy(update={"datasets": datasets, "hard_negatives": most})


def _train_on_mined(ctx: StageContext[RunConfig], cfg: TrainSupervisedConfig, start: str, say: _Say) -> StageResult:
    """Train on the rows of the stage `mine`."""
    table = ctx.inputs["mine"].read_table("rows", TRAINING_ROW)
    sets = labelled_datasets(ctx.cfg)
    settings = dataset_settings(sets, set(table["dataset"].to_pylist()), cfg)
    # A dataset may have its own number of negatives, more than the stage's (`DatasetConfig.hard_negatives`).
    most = max([cfg.hard_negatives, *(dataset.hard_negatives or 0 for dataset in settings.values())])
    # The curriculum begins with easier ones, which stand behind those.
    rows = rows_from_training(table, most if cfg.curriculum == "none" else None, cfg.synthetic, graded(settings))
    return _train_embedding(ctx, rows, cfg, sets, start, say)


def train_reranker(ctx: StageContext[RunConfig], say: _Say) -> StageResult:
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
    train = chosen.train
    if cfg.teacher is not None:
        judge = Judge(cfg.teacher.model, cfg.teacher.workers, cfg.max_tokens, cfg.max_query_tokens)
        train = with_teacher_scores(train, judge, ctx.cfg, query_instructions, ctx.out, say)
    model, trunk = _reranker_start(ctx)
    task = RerankerTask(cfg, model, ctx.cfg.models.instruction, chosen.dev, query_instructions, trunk)
    metrics = fit(TrainJob(task, by_dataset(train), ctx.cfg.seed, ctx.out.uri, ctx.cfg.cluster.gpus_per_worker))
    return StageResult(chosen.rows, len(train), chosen.left_out, metrics)


def _reranker_start(ctx: StageContext[RunConfig]) -> tuple[str, str | None]:
    """(the model that a stage of the reranker starts from, the one whose trunk it takes instead of its own), as
    `resolve_model` takes them."""
    start = reranker_start(ctx.cfg, ctx.name)
    if start == "reranker_weak":
        return final_model(ctx.inputs["reranker_weak"]).uri, None
    base = str(ctx.cfg.models.reranker_base or ctx.cfg.models.base)
    if start == "embedding":
        return base, final_model(ctx.inputs["supervised"]).uri
    return (base if start == "base" else start), None


def _train_embedding(
    ctx: StageContext[RunConfig],
    rows: list[TrainingRow],
    cfg: TrainEmbeddingConfig,
    sets: dict[str, DatasetConfig],
    model: str,
    say: _Say,
) -> StageResult:
    present = {row.dataset for row in rows}
    cfg = cfg.model_copy(update={"datasets": dataset_settings(sets, present, cfg)})
    every, rows = len(rows), without_queries(rows, evaluated_queries(ctx.inputs))
    checked(rows, cfg.batch_size, ctx.out.uri)
    check_datasets(rows, {name: settings.weight for name, settings in cfg.datasets.items()}, f"{ctx.name}.datasets")
    dev = first_set(ctx.inputs, "dev")
    check_stop(cfg.stop_after, dev.size if dev else 0, ctx.name, "corpus.dev_share")
    models = ctx.cfg.models
    task = EmbeddingTask(
        cfg,
        model,
        models.end_token,
        models.instruction,
        dev.read() if dev else None,
        _instruction(ctx.cfg, dev.name, cfg) if dev else None,
    )
    task, rows = _taught(ctx, task, rows, say)
    metrics = fit(TrainJob(task, by_dataset(rows), ctx.cfg.seed, ctx.out.uri, ctx.cfg.cluster.gpus_per_worker))
    left_out = {EVALUATED: every - len(rows)} if len(rows) < every else {}
    scratch = (TEACHER,) if task.teacher_vectors else ()
    return StageResult(every, len(rows), left_out, metrics, scratch)


def _taught(
    ctx: StageContext[RunConfig], task: EmbeddingTask, rows: list[TrainingRow], say: _Say
) -> tuple[EmbeddingTask, list[TrainingRow]]:
    """The task and its rows with what `teacher` of the stage says of them; unchanged without one."""
    teacher = task.cfg.teacher
    if teacher is None:
        return task, rows
    settings = {name: task.settings(name) for name in {row.dataset for row in rows}}
    if isinstance(teacher, DistillTeacherConfig) and teacher.model == RERANKER:
        return task, _with_reranker_scores(ctx, teacher, rows, settings, say)
    rows, vectors = with_teacher_vectors(rows, teacher, settings, ctx.cfg, ctx.out, say)
    return replace(task, teacher_vectors=vectors), rows


def _with_reranker_scores(
    ctx: StageContext[RunConfig],
    teacher: DistillTeacherConfig,
    rows: list[TrainingRow],
    settings: Mapping[str, StepSettings],
    say: _Say,
) -> list[TrainingRow]:
    """The rows, those of retrieval with a negative with the scores of the run's reranker, as it was trained."""
    section = require_section(ctx.cfg.reranker)
    counts = {name: min(teacher.candidates, how.hard_negatives) for name, how in settings.items()}
    counts = {name: count for name, count in counts.items() if settings[name].task == "retrieval" and count}
    places = [place for place, row in enumerate(rows) if row.dataset in counts and row.negatives]
    candidates = [replace(rows[i], negatives=rows[i].negatives[: counts[rows[i].dataset]]) for i in places]
    reranker = final_model(ctx.inputs["reranker"])
    judge = Judge(reranker.uri, teacher.workers, section.max_tokens, section.max_query_tokens)
    instruction_of = {name: how.instruction for name, how in settings.items()}
    scored = with_teacher_scores(candidates, judge, ctx.cfg, instruction_of, ctx.out, say)
    taught = list(rows)
    for place, row in zip(places, scored, strict=True):
        taught[place] = replace(rows[place], teacher=row.teacher)
    say(f"{ctx.name}: {len(places)} of {len(rows)} rows have candidates that the reranker has scored")
    return taught


def _instruction(cfg: RunConfig, dataset: str, stage: TrainEmbeddingConfig) -> str | None:
    """The instruction that a stage trains the queries of a dataset with; None for the run's."""
    settings = dataset_settings(labelled_datasets(cfg), {dataset}, stage)
    return settings[dataset].instruction if dataset in settings else None
