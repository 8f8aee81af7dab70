"""The stage `distill`: its settings, and what teachers say of a batch; scores and vectors lie on storage already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from qwen3emb.config.run import load_config
from qwen3emb.config.training import DistillTeacherConfig
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.vectors import Vectors
from qwen3emb.objective.distillation import VectorScores
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.pipeline.stages import identity, stage_folder, stage_inputs
from qwen3emb.training.stage import _distill_section, _taught
from qwen3emb.training.tasks import EmbeddingTask
from qwen3emb.training.teacher import _SCORES, TeacherVectors

SUPERVISED = "supervised.datasets={docstrings: {weight: 3, instruction: Find}, synthetic: {weight: 2}}"


def test_datasets_are_those_of_supervised_where_distill_says_nothing(run_file: Path) -> None:
    own = "datasets: {docstrings: {weight: 5}, more: {hard_negatives: 1}}"
    cfg = _distill_section(load_config(run_file, [SUPERVISED, f"distill={{steps: 1, hard_negatives: 1, {own}}}"]))
    assert (cfg.datasets["docstrings"].weight, cfg.datasets["docstrings"].instruction) == (5, "Find")
    assert (cfg.datasets["synthetic"].weight, cfg.datasets["more"].hard_negatives) == (2, 1)
    assert cfg.hard_negatives == 4, "the teacher's candidates are hard negatives"
    plain = _distill_section(load_config(run_file, [SUPERVISED, "distill={steps: 1, synthetic: false}"]))
    assert list(plain.datasets) == ["docstrings"]
    other = f"distill={{steps: 1, hard_negatives: 1, teacher: {{model: {run_file.parent}/model}}}}"
    assert _distill_section(load_config(run_file, [other])).hard_negatives == 1


def test_rows_without_candidates_are_not_scored(run_file: Path) -> None:
    sets = "datasets: {faq: {hard_negatives: 1}, classes: {task: classification}, graded: {task: sts}}"
    cfg = load_config(run_file, [f"distill={{steps: 1, teacher: {{candidates: 2}}, {sets}}}"])
    for stage in ("weak", "supervised", "reranker"):
        start(stage_folder(cfg, stage), identity(cfg, stage))
        metrics = {"model": "model", "checkpoints": ["model"]}
        complete(stage_folder(cfg, stage), identity(cfg, stage), StageResult(1, 1, {}, metrics), 1.0)
    ctx = StageContext(cfg, "distill", Storage(str(run_file.parent / "out")), stage_inputs(cfg, "distill"))
    rows = [
        TrainingRow("a", "q1", "p1", ("n1", "n2", "n3"), "docstrings"),
        TrainingRow("b", "q2", "p2", (), "docstrings"),
        TrainingRow("c", "q3", "p3", ("n4", "n5"), "faq"),
        TrainingRow("d", "q4", "p4", ("n6",), "classes"),
        TrainingRow("e", "q5", "p5", ("n7",), "graded"),
    ]
    # Positive and two candidates, positive and the one that its dataset has in a batch.
    scores = {"id": ["a", "c"], "scores": [[3.0, -1.0, 0.5], [2.0, 1.0]]}
    ctx.out.write_table("teacher/part-000000.parquet", pa.Table.from_pydict(scores, schema=_SCORES))
    section = _distill_section(cfg)
    assert isinstance(section.teacher, DistillTeacherConfig)
    said: list[str] = []
    task, taught = _taught(ctx, EmbeddingTask(section, run_file.parent, "", "", None), rows, said.append)
    assert task.teacher_vectors is None
    assert [row.teacher for row in taught] == [(3.0, -1.0, 0.5), (), (2.0, 1.0), (), ()]
    assert [row.negatives for row in taught] == [row.negatives for row in rows]
    assert said == ["distill: 2 of 5 rows have candidates that the reranker has scored"]
    assert _taught(ctx, EmbeddingTask(cfg.supervised, run_file.parent, "", "", None), rows, said.append)[1] is rows


def test_the_vectors_of_a_batch_come_in_the_order_of_its_texts(run_file: Path) -> None:
    stored = np.arange(18, dtype=np.float32).reshape(6, 3)
    for name in ("queries", "documents"):
        folder = run_file.parent / name
        folder.mkdir()
        for first in (0, 4):  # pieces of four
            np.save(folder / f"{first:010d}.npy", stored[first : first + 4])
    places = [Vectors(str(run_file.parent / name), 6, 4, "") for name in ("queries", "documents")]
    section = "supervised={steps: 1, hard_negatives: 2, loss: {temperature: 0.02}, datasets: {graded: {task: sts}}, "
    cfg = load_config(run_file, [section + "teacher: {model: other, weight: 0.3}}"]).supervised
    task = EmbeddingTask(cfg, run_file.parent, "", "", None, teacher_vectors=TeacherVectors(*places).here())
    rows = [
        TrainingRow("a", "q", "p", ("n1", "n2", "n3"), "docstrings", teacher_rows=(5, 4, 0, 5)),
        TrainingRow("b", "q", "p", ("n1",), "docstrings", teacher_rows=(5, 4, 0)),
        TrainingRow("c", "q2", "p2", (), "docstrings", teacher_rows=(1, 2)),
    ]
    found = task._teacher(rows, task.settings("docstrings"), torch.device("cpu"))
    assert isinstance(found, VectorScores) and (found.weight, found.temperature) == (0.3, 0.02)
    np.testing.assert_array_equal(found.queries, stored[[5, 5, 1]])
    np.testing.assert_array_equal(found.documents, stored[[4, 4, 2, 0, 5, 0]])
    assert task._teacher(rows, task.settings("graded"), torch.device("cpu")) is None
