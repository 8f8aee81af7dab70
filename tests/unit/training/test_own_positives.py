"""A positive of a query is never trained as a negative of it, however it is written and in whichever row it stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from qwen3emb.config.training import LossConfig, OptimizerConfig, TeacherConfig, TrainRerankerConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.records import PAIR, TRAINING_ROW
from qwen3emb.model.loading import load_causal, load_tokenizer, load_trunk
from qwen3emb.objective.embedding_step import StepSettings, embedding_step
from qwen3emb.objective.microbatch import PlainEngine
from qwen3emb.objective.reranker_step import reranker_step
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.templates import EmbeddingTemplate, RerankTemplate, TextLimits
from qwen3emb.training.selection import rows_from_pairs, rows_from_training

ROWS = [
    TrainingRow("a", "où ?", "café", ("cafe\u0301", "no", " the\tother "), "one"),
    TrainingRow("b", "ou\u0300  ?", "the other", ("café ", "not this", "café"), "two"),
    TrainingRow("c", "else", "no", ("café", "graded"), "one"),
    TrainingRow("d", "else", "graded", (), "sts"),
]
LEFT = [("no",), ("not this",), ("café", "graded"), ()]
"""Their negatives without positives of the same query; what is graded is no positive."""


def test_rows_are_made_without_positives_of_their_query() -> None:
    rows = [
        {"id": r.id, "query": r.query, "positive": r.positive, "negatives": list(r.negatives), "dataset": r.dataset}
        | {"grade": 0.0 if r.dataset == "sts" else None}
        for r in ROWS
    ]
    table = pa.Table.from_pylist(rows, schema=TRAINING_ROW)
    assert [r.negatives for r in rows_from_training(table, 9, graded={"sts"})] == LEFT
    assert [r.negatives for r in rows_from_training(table, 1, graded={"sts"})] == [n[:1] for n in LEFT], "filled up"
    assert [r.negatives for r in rows_from_training(table, None, graded={"sts"})] == LEFT
    assert rows_from_training(table, 9)[2].negatives == ("café",)
    pairs = pa.Table.from_pylist([row | {"document": row["positive"]} for row in rows], schema=PAIR)
    assert [r.negatives for r in rows_from_pairs(pairs, {"sts"})] == LEFT


def test_a_graded_row_without_a_grade_is_an_error_not_a_zero() -> None:
    row = {"id": "x", "query": "q", "positive": "p", "document": "p", "dataset": "sts", "grade": None}
    for rows_from, schema in ((rows_from_pairs, PAIR), (rows_from_training, TRAINING_ROW)):
        table = pa.Table.from_pylist([row], schema=schema)
        more = (9,) if rows_from is rows_from_training else ()
        with pytest.raises(UserError, match=r"row x.*sts.*no grade"):
            rows_from(table, *more, graded={"sts"})  # type: ignore[operator]
        assert rows_from(table, *more)[0].grade == 0.0  # type: ignore[operator]


@pytest.mark.parametrize("taught", [False, True])
def test_the_reranker_step_leaves_them_out(tiny_qwen3: Path, taught: bool) -> None:
    model, template = load_causal(tiny_qwen3, "float32").train(), RerankTemplate(load_tokenizer(tiny_qwen3))
    cfg = TrainRerankerConfig(
        steps=1, queries_per_step=3, negatives=3, optimizer=OptimizerConfig(dtype="float32")
    ).model_copy(update={"teacher": TeacherConfig(model="-", weight=0.5) if taught else None})
    # A teacher's scores stand for the documents at the same places.
    scores = [(0.9, 0.8, 0.3, 0.7), (0.8, 0.6, 0.2, 0.9), (0.7, 0.1, 0.4)]
    given = [replace(row, teacher=s) for row, s in zip(ROWS[:3], scores, strict=True)]
    clean_scores = [(0.9, 0.3), (0.8, 0.2), (0.7, 0.1, 0.4)]
    clean = [replace(r, negatives=n, teacher=s) for r, n, s in zip(ROWS[:3], LEFT[:3], clean_scores, strict=True)]
    found = []
    for rows in (given, clean):
        metrics = reranker_step(PlainEngine(model), template, rows, cfg, "find it")
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((metrics["loss"], metrics["tokens"], gradient))
        model.zero_grad(set_to_none=True)
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2]) and float(found[0][2].norm()) > 1e-3


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_the_embedding_loss_of_positives_alone_is_nothing(tiny_qwen3: Path, task: str) -> None:
    """Two rows of one query: every document of the batch answers it, so there is nothing to push away."""
    settings = StepSettings("find it", task, 3, TextLimits(64, 96), LossConfig(margin=9.0), 10_000)
    template = EmbeddingTemplate(load_tokenizer(tiny_qwen3), "<|endoftext|>")
    rows = [replace(ROWS[0], negatives=("cafe\u0301", " the\tother ")), replace(ROWS[1], negatives=("café ", "café"))]
    trunk = load_trunk(tiny_qwen3, "float32").train()
    found = embedding_step(PlainEngine(trunk), template, rows, settings)
    assert found["loss"] == pytest.approx(0, abs=1e-6) and found["masked"] == 1.0
    other = embedding_step(PlainEngine(trunk), template, [*rows, ROWS[2]], settings)
    assert other["loss"] > 0.01
