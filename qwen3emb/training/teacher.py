"""A teacher's scores of the reranker's training rows: computed once, by workers, and kept in the stage's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import TrainRerankerConfig
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.pool import Rerankers
from qwen3emb.model.fetch import resolve_model
from qwen3emb.objective.rows import TrainingRow

__all__ = ["with_teacher_scores"]

_FOLDER = "teacher"
_PIECE = 2048
_SCORES = pa.schema([("id", pa.string()), ("scores", pa.list_(pa.float32()))])


def with_teacher_scores(
    rows: Sequence[TrainingRow],
    cfg: TrainRerankerConfig,
    run: RunConfig,
    instructions: Mapping[str, str],
    out: Storage,
    say: Callable[[str], None],
) -> list[TrainingRow]:
    """Add the teacher's P(yes) of each document to the rows; without a teacher the rows are returned unchanged.

    Scores are written in pieces of 2,048 rows, and pieces that a killed run has written are not computed again.

    Args:
        rows: queries with their positive and negatives.
        cfg: section of the reranker stage.
        run: the whole configuration.
        instructions: dataset -> instruction, where it is not the run's.
        out: folder of the stage.
        say: called with each line of progress.

    Raises:
        UserError: the teacher cannot be loaded.
    """
    if cfg.teacher is None:
        return list(rows)
    pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
    files = [f"{_FOLDER}/part-{number:06d}.parquet" for number in range(len(pieces))]
    missing = [(file, piece) for file, piece in zip(files, pieces, strict=True) if not _scored_before(out, file, piece)]
    if missing:
        model = str(resolve_model(cfg.teacher.model))
        say(f"{_FOLDER}: {model} scores the documents of {sum(len(piece) for _, piece in missing)} rows")
        with Rerankers(model, workers=cfg.teacher.workers, gpus_per_worker=run.cluster.gpus_per_worker) as pool:
            for file, piece in missing:
                scores = _scored(pool, piece, cfg, run.models.instruction, instructions, say)
                table = {"id": [row.id for row in piece], "scores": scores}
                out.write_table(file, pa.Table.from_pydict(table, schema=_SCORES))
    teacher_scores = [score for file in files for score in out.read_table(file)["scores"].to_pylist()]
    return [replace(row, teacher=tuple(scores)) for row, scores in zip(rows, teacher_scores, strict=True)]


def _scored_before(out: Storage, file: str, rows: Sequence[TrainingRow]) -> bool:
    """Whether the file exists and holds the scores of exactly these rows."""
    return out.exists(file) and out.read_table(file)["id"].to_pylist() == [row.id for row in rows]


def _scored(
    pool: Rerankers,
    rows: Sequence[TrainingRow],
    cfg: TrainRerankerConfig,
    instruction: str,
    instructions: Mapping[str, str],
    say: Callable[[str], None],
) -> list[list[float]]:
    """P(yes) of each row's positive and negatives, with the instruction of its dataset."""
    row_scores: list[list[float]] = [[] for _ in rows]
    for dataset_instruction in sorted({instructions.get(row.dataset, instruction) for row in rows}):
        numbers = [i for i, row in enumerate(rows) if instructions.get(row.dataset, instruction) == dataset_instruction]
        scores = pool.score(
            [rows[i].query for i in numbers],
            [[rows[i].positive, *rows[i].negatives] for i in numbers],
            max_tokens=cfg.max_tokens,
            max_query_tokens=cfg.max_query_tokens,
            instruction=dataset_instruction,
            progress=paced(say, f"{_FOLDER}: queries scored"),
        )
        for i, values in zip(numbers, scores, strict=True):
            row_scores[i] = values.tolist()
    return row_scores
