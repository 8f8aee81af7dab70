"""Training rows with a teacher's scores or vectors, and the model that the reranker's second stage starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.reranker import Reranker
from qwen3emb.objective.distillation import VectorScores
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.pipeline.stages import identity, stage_folder, stage_inputs
from qwen3emb.training import teacher
from qwen3emb.training.stage import _reranker_start
from qwen3emb.training.tasks import EmbeddingTask

pytestmark = pytest.mark.integration

ROWS = [
    TrainingRow(f"r{i}", f"question {i} of the mail", f"answer {i}", tuple(f"wrong {i} {n}" for n in range(i)), name)
    for i, name in enumerate(["docstrings", "faq", "docstrings", "faq", "docstrings"])
]
ASKED = {"faq": "Given a customer's question, find the answer"}


def config(folder: Path, minimal_run: Callable[..., dict[str, Any]], model: Path, **sections: Any) -> RunConfig:
    run = minimal_run(folder, model) | sections
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return load_config(folder / "run.yaml")


def test_every_row_gets_the_teachers_scores_once(
    tmp_path: Path,
    tiny_qwen3: Path,
    minimal_run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher, "_PIECE", 2)
    cfg = config(tmp_path, minimal_run, tiny_qwen3)
    asked_of = teacher.Judge(str(tiny_qwen3), workers=1, max_tokens=256, max_query_tokens=64)
    out, said = Storage(str(tmp_path / "stage")), []
    found = teacher.with_teacher_scores(ROWS, asked_of, cfg, ASKED, out, said.append)
    judge = Reranker(tiny_qwen3, dtype="float32")
    for row, given in zip(found, ROWS, strict=True):
        documents = [row.positive, *row.negatives]
        ask = ASKED.get(row.dataset, cfg.models.instruction)
        wanted = judge.score(row.query, documents, max_tokens=256, max_query_tokens=64, instruction=ask)
        np.testing.assert_allclose(1 / (1 + np.exp(-np.array(row.teacher))), wanted, atol=1e-4)
        assert (row.id, row.negatives) == (given.id, given.negatives)
    assert len(out.names("teacher")) == 3

    out.delete("teacher/part-000001.parquet")  # what a killed run had not written yet
    said.clear()
    assert teacher.with_teacher_scores(ROWS, asked_of, cfg, ASKED, out, said.append) == found
    assert "documents of 2 rows" in said[0]
    said.clear()
    assert teacher.with_teacher_scores(ROWS, asked_of, cfg, ASKED, out, said.append) == found and not said
    other = ROWS[::-1]  # what lies there is of other rows
    assert teacher.with_teacher_scores(other, asked_of, cfg, ASKED, out, said.append) == found[::-1]


def test_every_text_gets_the_teachers_vector_once(
    tmp_path: Path, tiny_qwen3: Path, minimal_run: Callable[..., dict[str, Any]]
) -> None:
    section = {"steps": 1, "hard_negatives": 2, "teacher": {"model": str(tiny_qwen3), "weight": 0.25}}
    section["datasets"] = {"faq": {"instruction": ASKED["faq"], "hard_negatives": 1}, "graded": {"task": "sts"}}
    cfg = config(tmp_path, minimal_run, tiny_qwen3, supervised=section)
    assert cfg.supervised.teacher is not None
    rows = [*ROWS, replace(ROWS[0], id="again"), replace(ROWS[0], id="graded", dataset="graded")]
    task = EmbeddingTask(cfg.supervised, tiny_qwen3, cfg.models.end_token, cfg.models.instruction, None)
    settings = {name: task.settings(name) for name in ("docstrings", "faq", "graded")}
    out, said = Storage(str(tmp_path / "stage")), []

    def taught() -> tuple[list[TrainingRow], teacher.TeacherVectors]:
        return teacher.with_teacher_vectors(rows, cfg.supervised.teacher, settings, cfg, out, said.append)

    numbered, vectors = taught()
    assert "5 queries and 11 documents" in said[0]  # negatives: 0, 1, 2, 1 of three, 2 of four
    assert [len(row.teacher_rows) for row in numbered] == [2, 3, 4, 3, 4, 2, 0]
    assert numbered[5].teacher_rows == numbered[0].teacher_rows
    encoder = Encoder(tiny_qwen3, end_token=cfg.models.end_token, dtype="float32")
    batch = [numbered[4], numbered[2], numbered[0]]
    queries, documents = vectors.here().of_batch(batch, 2)
    texts = [row.positive for row in batch] + [text for row in batch for text in row.negatives[:2]]
    asked = encoder.encode([row.query for row in batch], max_tokens=64, instruction=cfg.models.instruction)
    np.testing.assert_allclose(queries, asked, atol=1e-4)
    np.testing.assert_allclose(documents, encoder.encode(texts, max_tokens=256), atol=1e-4)
    one = encoder.encode([ROWS[1].query], max_tokens=64, instruction=ASKED["faq"])
    np.testing.assert_allclose(vectors.of_batch([numbered[1]], 1)[0], one, atol=1e-4)

    # What is on storage is not computed again: another content there is taken as it is.
    piece = vectors.queries.uri + "/0000000000.npy"
    np.save(piece, np.zeros_like(np.load(piece)))
    assert taught()[0] == numbered and not vectors.of_batch([numbered[1]], 1)[0].any()

    # The loss of the step follows the teacher's cosines.
    task.teacher_vectors = vectors
    found = task._teacher(batch, settings["docstrings"], torch.device("cpu"))
    assert isinstance(found, VectorScores) and (found.weight, found.temperature) == (0.25, 0.05)
    np.testing.assert_array_equal(found.documents, documents)
    assert task._teacher(batch, settings["graded"], torch.device("cpu")) is None


def test_the_reranker_starts_from_its_weak_stage_where_there_is_one(
    tmp_path: Path, tiny_qwen3: Path, minimal_run: Callable[..., dict[str, Any]]
) -> None:
    section = {"steps": 1, "negatives": 1}
    cfg = config(tmp_path, minimal_run, tiny_qwen3, reranker=section, reranker_weak=section)
    weak = stage_folder(cfg, "reranker_weak")
    start(weak, identity(cfg, "reranker_weak"))
    metrics = {"model": "checkpoints/step_000001", "checkpoints": ["checkpoints/step_000001"]}
    complete(weak, identity(cfg, "reranker_weak"), StageResult(0, 0, {}, metrics), 0.0)

    def begins(cfg: RunConfig, stage: str) -> tuple[str, str | None]:
        return _reranker_start(StageContext(cfg, stage, stage_folder(cfg, stage), stage_inputs(cfg, stage)))

    assert begins(cfg, "reranker") == ((weak / "checkpoints/step_000001").uri, None)
    base = config(tmp_path, minimal_run, tiny_qwen3, reranker=section | {"start": "base"})
    assert begins(base, "reranker") == (str(tiny_qwen3), None)
    without = config(tmp_path, minimal_run, tiny_qwen3, reranker=section)
    embedding = stage_folder(without, "supervised")
    start(embedding, identity(without, "supervised"))
    complete(embedding, identity(without, "supervised"), StageResult(0, 0, {}, metrics), 0.0)
    trunk = (embedding / "checkpoints/step_000001").uri
    assert begins(without, "reranker") == (str(tiny_qwen3), trunk)
