"""The reranker's training rows with a teacher's scores, and the model that its second stage starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import StageResult, complete, start
from qwen3emb.core.context import StageContext
from qwen3emb.core.storage import Storage
from qwen3emb.model.reranker import Reranker
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.pipeline.stages import identity, stage_folder, stage_inputs
from qwen3emb.training import teacher
from qwen3emb.training.stage import _reranker_start

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
    section = {"steps": 1, "negatives": 3, "max_tokens": 256, "teacher": {"model": str(tiny_qwen3)}}
    cfg = config(tmp_path, minimal_run, tiny_qwen3, reranker=section, mine={"negatives": 3})
    assert cfg.reranker is not None
    out, said = Storage(str(tmp_path / "stage")), []
    found = teacher.with_teacher_scores(ROWS, cfg.reranker, cfg, ASKED, out, said.append)
    judge = Reranker(tiny_qwen3, dtype="float32")
    for row, given in zip(found, ROWS, strict=True):
        documents = [row.positive, *row.negatives]
        ask = ASKED.get(row.dataset, cfg.models.instruction)
        wanted = judge.score(row.query, documents, max_tokens=256, max_query_tokens=64, instruction=ask)
        np.testing.assert_allclose(row.teacher, wanted, atol=1e-4)
        assert (row.id, row.negatives) == (given.id, given.negatives)
    assert len(out.names("teacher")) == 3

    out.delete("teacher/part-000001.parquet")  # what a killed run had not written yet
    said.clear()
    assert teacher.with_teacher_scores(ROWS, cfg.reranker, cfg, ASKED, out, said.append) == found
    assert "documents of 2 rows" in said[0]
    said.clear()
    assert teacher.with_teacher_scores(ROWS, cfg.reranker, cfg, ASKED, out, said.append) == found and not said
    other = ROWS[::-1]  # what lies there is of other rows
    assert teacher.with_teacher_scores(other, cfg.reranker, cfg, ASKED, out, said.append) == found[::-1]
    plain = cfg.reranker.model_copy(update={"teacher": None})
    assert teacher.with_teacher_scores(ROWS, plain, cfg, ASKED, out, said.append) == ROWS


def test_the_reranker_starts_from_its_weak_stage_where_there_is_one(
    tmp_path: Path, tiny_qwen3: Path, minimal_run: Callable[..., dict[str, Any]]
) -> None:
    section = {"steps": 1, "negatives": 1}
    cfg = config(tmp_path, minimal_run, tiny_qwen3, reranker=section, reranker_weak=section)
    weak = stage_folder(cfg, "reranker_weak")
    start(weak, identity(cfg, "reranker_weak"))
    metrics = {"model": "checkpoints/step_000001", "checkpoints": ["checkpoints/step_000001"]}
    complete(weak, identity(cfg, "reranker_weak"), StageResult(0, 0, {}, metrics), 0.0)

    def begins(cfg: RunConfig, stage: str, start: str | None = None) -> tuple[Path, Path | None]:
        return _reranker_start(StageContext(cfg, stage, stage_folder(cfg, stage), stage_inputs(cfg, stage)), start)

    assert begins(cfg, "reranker") == (Path(weak.local("checkpoints/step_000001")), None)
    assert begins(cfg, "reranker", "base") == begins(cfg, "reranker_weak") == (tiny_qwen3, None)
    without = config(tmp_path, minimal_run, tiny_qwen3, reranker=section)
    assert begins(without, "reranker") == (tiny_qwen3, None)
