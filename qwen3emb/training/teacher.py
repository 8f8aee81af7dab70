"""What a teacher says of the training rows: computed once, by workers, and kept in the stage's folder.

A reranker gives a score to each document of a row (`with_teacher_scores`), an embedding model a vector to each text
(`with_teacher_vectors`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import EmbeddingTeacherConfig
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.dispatch import paced
from qwen3emb.encoding.pool import Encoders, Rerankers
from qwen3emb.encoding.vectors import Vectors, write_vectors
from qwen3emb.model.stored import named_model
from qwen3emb.objective.embedding_step import StepSettings
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.templates import TextLimits

__all__ = ["TEACHER", "Judge", "TeacherVectors", "with_teacher_scores", "with_teacher_vectors"]

TEACHER = "teacher"
"""Folder of the scores or vectors in the stage's."""

_PIECE = 2048
_SCORES = pa.schema([("id", pa.string()), ("scores", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Judge:
    """A reranker that scores training rows: a directory or URI, its workers, and how much it reads of a text."""

    model: str
    workers: int
    max_tokens: int
    max_query_tokens: int


def with_teacher_scores(
    rows: Sequence[TrainingRow],
    judge: Judge,
    run: RunConfig,
    instructions: Mapping[str, str],
    out: Storage,
    say: Callable[[str], None],
) -> list[TrainingRow]:
    """Add the teacher's logit of P(yes) for each document to the rows.

    Scores are written in pieces of 2,048 rows, and pieces that a killed run has written are not computed again.

    Args:
        rows: queries with their positive and negatives.
        judge: the teacher.
        run: the whole configuration.
        instructions: dataset -> instruction, where it is not the run's.
        out: folder of the stage.
        say: called with each line of progress.

    Raises:
        UserError: the teacher cannot be loaded.
    """
    pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
    files = [f"{TEACHER}/part-{number:06d}.parquet" for number in range(len(pieces))]
    missing = [(file, piece) for file, piece in zip(files, pieces, strict=True) if not _scored_before(out, file, piece)]
    if missing:
        say(f"{TEACHER}: {judge.model} scores the documents of {sum(len(piece) for _, piece in missing)} rows")
        with Rerankers(judge.model, workers=judge.workers, gpus_per_worker=run.cluster.gpus_per_worker) as pool:
            for file, piece in missing:
                scores = _scored(pool, piece, judge, run.models.instruction, instructions, say)
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
    judge: Judge,
    instruction: str,
    instructions: Mapping[str, str],
    say: Callable[[str], None],
) -> list[list[float]]:
    """Logits of P(yes) of each row's positive and negatives, with the instruction of its dataset."""
    row_scores: list[list[float]] = [[] for _ in rows]
    for dataset_instruction in sorted({instructions.get(row.dataset, instruction) for row in rows}):
        numbers = [i for i, row in enumerate(rows) if instructions.get(row.dataset, instruction) == dataset_instruction]
        scores = pool.score(
            [rows[i].query for i in numbers],
            [[rows[i].positive, *rows[i].negatives] for i in numbers],
            max_tokens=judge.max_tokens,
            max_query_tokens=judge.max_query_tokens,
            instruction=dataset_instruction,
            logits=True,
            progress=paced(say, f"{TEACHER}: queries scored"),
        )
        for i, values in zip(numbers, scores, strict=True):
            row_scores[i] = values.tolist()
    return row_scores


@dataclass(frozen=True)
class TeacherVectors:
    """A teacher's vectors of the queries and documents that are trained on."""

    queries: Vectors
    documents: Vectors

    def here(self) -> TeacherVectors:
        """The same from folders of this machine, so that a step reads its rows and not whole files of a storage."""
        return TeacherVectors(*(replace(v, uri=str(Storage(v.uri).local())) for v in (self.queries, self.documents)))

    def of_batch(self, rows: Sequence[TrainingRow], hard_negatives: int) -> tuple[np.ndarray, np.ndarray]:
        """((N, D') of the queries, (N + M, D') of the positives and of up to `hard_negatives` negatives of each row).

        Args:
            rows: the global batch, as `with_teacher_vectors` returned its rows.
            hard_negatives: of each row in the batch.
        """
        negatives = [number for row in rows for number in row.teacher_rows[2 : 2 + hard_negatives]]
        documents = [row.teacher_rows[1] for row in rows] + negatives
        return _read(self.queries, [row.teacher_rows[0] for row in rows]), _read(self.documents, documents)


def _read(vectors: Vectors, numbers: Sequence[int]) -> np.ndarray:
    distinct, places = np.unique(np.array(numbers), return_inverse=True)
    return vectors.read(distinct)[places]


def with_teacher_vectors(
    rows: Sequence[TrainingRow],
    teacher: EmbeddingTeacherConfig,
    settings: Mapping[str, StepSettings],
    run: RunConfig,
    out: Storage,
    say: Callable[[str], None],
) -> tuple[list[TrainingRow], TeacherVectors]:
    """Embed the texts of the rows with the teacher, each once; graded pairs (sts) learn their grades alone.

    Vectors that a killed run has written are not computed again.

    Args:
        rows: all training rows.
        teacher: which model, and its workers.
        settings: dataset -> how its rows are trained on.
        run: the whole configuration.
        out: folder of the stage.
        say: called with each line of progress.

    Returns:
        (the rows with `teacher_rows`, the vectors).

    Raises:
        UserError: the teacher cannot be loaded or reached.
    """
    queries: dict[tuple[str, str], int] = {}
    documents: dict[str, int] = {}
    numbered = []
    for row in rows:
        how = settings[row.dataset]
        if how.task != "sts":
            texts = (row.positive, *row.negatives[: how.hard_negatives])
            query = queries.setdefault((row.query, how.instruction), len(queries))
            row = replace(row, teacher_rows=(query, *(documents.setdefault(text, len(documents)) for text in texts)))
        numbered.append(row)
    limits = [how.limits for how in settings.values()]
    longest = TextLimits(max(limit.query for limit in limits), max(limit.document for limit in limits))
    model, end_token = named_model(teacher.model, run.models.end_token)
    say(f"{TEACHER}: {model} embeds {len(queries)} queries and {len(documents)} documents")
    gpus = run.cluster.gpus_per_worker
    with Encoders(model, end_token=end_token, workers=teacher.workers, gpus_per_worker=gpus) as pool:
        asked, folder = [text for text, _ in queries], out / TEACHER
        vectors = TeacherVectors(
            write_vectors(
                pool,
                folder / "queries",
                asked,
                max_tokens=longest.query,
                instruction=[instruction for _, instruction in queries],
                progress=paced(say, f"{TEACHER}: queries embedded"),
            ),
            write_vectors(
                pool,
                folder / "documents",
                list(documents),
                max_tokens=longest.document,
                progress=paced(say, f"{TEACHER}: documents embedded"),
            ),
        )
        for line in pool.notes():
            say(f"{TEACHER}: {line}")
    return numbered, vectors
