"""Both trainings as jobs on real Ray Train and DeepSpeed with two workers: kill -9, resume, bit-exact."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file

from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import StageResult, complete, read_record, start
from qwen3emb.core.records import PAIR, TRAINING_ROW
from qwen3emb.core.storage import Storage
from qwen3emb.model.reranker import Reranker
from qwen3emb.pipeline.stages import identity, stage_folder
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set

pytestmark = pytest.mark.integration

STEPS = 8
OPTIMIZER = {"lr": 1e-3, "warmup_steps": 2, "zero_stage": 2}


def write_run(folder: Path, model: Path, home: str = "") -> Path:
    """A config whose upstream stages are complete, with data small enough for seconds.

    Args:
        folder: receives the config.
        model: what all models of the run are.
        home: URI that receives input and output; default `folder`.
    """
    home = home or str(folder)
    Storage(home).write_bytes("personas.jsonl", b'{"persona": "a tester"}\n')
    Storage(home).write_bytes("texts.jsonl", b'{"text": "some text"}\n')
    weak = {"steps": STEPS, "batch_size": 4, "num_workers": 2, "checkpoint_every": 2, "threads": 1}
    config = {
        "name": "test",
        "storage": f"{home}/run",
        "models": {
            "generator": str(model),
            "base": str(model),
            "retrieval": str(model),
            "end_token": "<|endoftext|>",
            "instruction": "find it",
        },
        "corpus": {"sources": [{"kind": "jsonl", "path": f"{home}/texts.jsonl"}]},
        "synthesize": {"personas": f"{home}/personas.jsonl"},
        "weak": weak | {"optimizer": OPTIMIZER, "loss": {"mrl_dims": [16]}},
        "supervised": weak | {"optimizer": OPTIMIZER},
        "mine": {"negatives": 2},
        "reranker": {
            "steps": 4,
            "queries_per_step": 2,
            "negatives": 2,
            "num_workers": 2,
            "checkpoint_every": 2,
            "threads": 1,
            "optimizer": OPTIMIZER | {"zero_stage": 3},
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    cfg = load_config(path)
    words = ["file", "list", "line", "text", "query", "document", "path", "model"] * 4
    pairs = [
        {"id": str(i), "query": f"read {w} {i}", "document": f"def {w}{i}(path): return {w}", "dataset": "synthetic"}
        for i, w in enumerate(words)
    ]
    rows = [
        {"id": p["id"], "query": p["query"], "positive": p["document"], "dataset": "docstrings"}
        | {"negatives": [pairs[i - 1]["document"], pairs[i - 2]["document"]][: 2 - i % 2]}
        for i, p in enumerate(pairs)
    ]
    dev = RetrievalSet(
        {f"q{i}": f"read {w}" for i, w in enumerate(words[:5])},
        {f"d{i}": ("", f"def {w}(path)") for i, w in enumerate(words[:8])},
        {f"q{i}": {f"d{i}": 1} for i in range(5)},
    )
    for stage in ("corpus", "synthesize", "weak", "filter", "mine"):
        if stage == "weak":
            continue
        out = stage_folder(cfg, stage)
        start(out, identity(cfg, stage))
        if stage == "corpus":
            write_retrieval_set(out / "dev", dev)
        if stage == "synthesize":
            out.write_table("pairs/0.parquet", pa.Table.from_pylist(pairs, schema=PAIR))
        if stage == "mine":
            out.write_table("rows/0.parquet", pa.Table.from_pylist(rows, schema=TRAINING_ROW))
        complete(out, identity(cfg, stage), StageResult(1, 1), 0.0)
    return path


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """A test that fails leaves no job behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def job(name: str, config: Path, *arguments: str) -> subprocess.Popen[str]:
    """A job in a session of its own, so that it can be killed with all its Ray processes."""
    command = [sys.executable, "-m", f"jobs.{name}", "--config", str(config), *arguments]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    STARTED.append(subprocess.Popen(command, **how))
    return STARTED[-1]


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def killed_at_a_checkpoint(victim: subprocess.Popen[str], out: Path) -> Path:
    """`kill -9` for the job and all its processes once it can be resumed; the folder of its state."""
    deadline = time.monotonic() + 400
    # The folder of a checkpoint is there before Ray Train has it in its books, from which a new run goes on.
    books = out / "ray_train" / "checkpoint_manager_snapshot.json"
    while not (books.exists() and "step_00000" in books.read_text()):
        assert time.monotonic() < deadline and victim.poll() is None, "no checkpoint was registered"
        time.sleep(0.1)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    return out / "ray_train"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("stage", "flags"),
    [("weak", []), ("supervised", ["--set", "supervised.curriculum=hardness", "--set", "supervised.hard_negatives=1"])],
)
def test_an_embedding_stage_killed_and_resumed_equals_the_uninterrupted_one(
    stage: str, flags: list[str], tiny_qwen3: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, cut = write_run(tmp_path / "a", tiny_qwen3), write_run(tmp_path / "b", tiny_qwen3)
    for config in (whole, cut):
        if stage == "supervised":
            weak = stage_folder(load_config(config), "weak")
            shutil.copytree(tiny_qwen3, weak.local("model"))
            start(weak, identity(load_config(config), "weak"))
            complete(weak, identity(load_config(config), "weak"), StageResult(1, 1, {}, {"model": "model"}), 0.0)
    arguments = ("--stage", stage, *flags)
    reference = job("train_embedding", whole, *arguments)
    saved = killed_at_a_checkpoint(job("train_embedding", cut, *arguments), tmp_path / "b" / "run" / stage)
    assert not (tmp_path / "b" / "run" / stage / "artifact.json").exists(), "it finished before it was killed"

    resumed = finished(job("train_embedding", cut, *arguments))
    assert f"step {STEPS}/{STEPS}" in finished(reference)
    assert "resuming" in resumed
    assert f"step 1/{STEPS} " not in resumed, "it began again instead of going on"
    last = f"run/{stage}/checkpoints/step_{STEPS:06d}"
    first, second = weights(tmp_path / "a" / last), weights(tmp_path / "b" / last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = load_file(tiny_qwen3 / "model.safetensors")
    assert any(not torch.equal(first[name].float(), changed[name].float()) for name in first)
    assert {w.dtype for w in first.values()} == {w.dtype for w in changed.values()}, (
        "stored as its start, however it computes"
    )
    assert not saved.exists(), "optimizer state stays only while a run is unfinished"
    record = read_record(stage_folder(load_config(cut, flags[1::2]), stage))
    if stage == "weak":  # with the curriculum the later steps are the harder ones
        assert record["metrics"]["last_loss"] < record["metrics"]["first_loss"]
    assert set(record["metrics"]["validation"]) == {"2", "4", "6", "8"}


def test_reranker_stage_under_zero_3_goes_on_with_more_workers_and_opens_as_causal_lm(
    tiny_qwen3: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config = write_run(tmp_path, tiny_qwen3)
    # `mine` and `supervised` stand in for everything before it: the reranker reads only their rows and model.
    sets = ["reranker.start=embedding"]
    cfg, flags = load_config(config, sets), ["--set", *sets]
    shutil.copytree(tiny_qwen3, stage_folder(cfg, "supervised").local("model"))
    for stage, metrics in (("weak", {}), ("supervised", {"model": "model", "checkpoints": ["model"]})):
        start(stage_folder(cfg, stage), identity(cfg, stage))
        complete(stage_folder(cfg, stage), identity(cfg, stage), StageResult(1, 1, {}, metrics), 0.0)
    alone = job("train_reranker", config, *flags, "--set", "reranker.num_workers=1")
    killed_at_a_checkpoint(alone, tmp_path / "run" / "reranker")
    said = finished(job("train_reranker", config, *flags))
    assert "resuming" in said and "step 1/4 " not in said
    record = read_record(stage_folder(cfg, "reranker"))
    assert record["rows_out"] + sum(record["rejected"].values()) == record["rows_in"] == 32
    folder = tmp_path / "run" / "reranker" / record["metrics"]["model"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) > 0
    assert set(record["metrics"]["validation"]) == {"2", "4"}
    assert len(list((tmp_path / "run" / "reranker" / "tensorboard").iterdir())) == 2


def test_the_reranker_teaches_the_supervised_model(tiny_qwen3: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, tiny_qwen3)
    distill = {"steps": STEPS, "batch_size": 4, "num_workers": 2, "checkpoint_every": 2, "threads": 1}
    distill |= {"optimizer": OPTIMIZER, "loss": {"mrl_dims": [16]}}
    section = yaml.safe_load(config.read_text()) | {"distill": distill | {"teacher": {"candidates": 2, "weight": 0.75}}}
    config.write_text(yaml.safe_dump(section))
    cfg = load_config(config)
    for stage in ("supervised", "reranker"):
        shutil.copytree(tiny_qwen3, stage_folder(cfg, stage).local("model"))
    for stage in ("weak", "supervised", "reranker"):
        start(stage_folder(cfg, stage), identity(cfg, stage))
        metrics = {} if stage == "weak" else {"model": "model", "checkpoints": ["model"]}
        complete(stage_folder(cfg, stage), identity(cfg, stage), StageResult(1, 1, {}, metrics), 0.0)
    killed_at_a_checkpoint(job("train_embedding", config, "--stage", "distill"), tmp_path / "run" / "distill")
    kept = stage_folder(cfg, "distill").read_table("teacher")
    said = finished(job("train_embedding", config, "--stage", "distill"))
    assert "resuming" in said and "32 of 32 rows have candidates" in said
    assert "scores the documents" not in said, "the teacher's scores were computed again"

    judge, rows = Reranker(tiny_qwen3, dtype="float32"), stage_folder(cfg, "mine").read_table("rows").to_pylist()
    for row, scores in zip(rows[:4], kept["scores"].to_pylist(), strict=False):
        wanted = judge.score(
            row["query"],
            [row["positive"], *row["negatives"]],
            max_tokens=512,
            max_query_tokens=64,
            instruction="find it",
        )
        assert torch.sigmoid(torch.tensor(scores)).tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
    folder = stage_folder(cfg, "distill")
    record = read_record(folder)
    assert record["rows_out"] == 32 and set(record["metrics"]["validation"]) == {"2", "4", "6", "8"}
    steps = [json.loads(line) for line in folder.read_bytes("metrics.jsonl").splitlines()]
    assert len(steps) == STEPS and all(step["teacher"] > 0 for step in steps)
    model = weights(tmp_path / "run" / "distill" / record["metrics"]["model"])
    before = load_file(tiny_qwen3 / "model.safetensors")
    assert any(not torch.equal(model[name].float(), before[name].float()) for name in model)

    # An embedding model as the teacher: its vectors lie on storage while the stage is unfinished.
    other = ["--set", f"distill.teacher.model={tiny_qwen3}", "--set", "distill.steps=2", "--replace"]
    said = finished(job("train_embedding", config, "--stage", "distill", *other))
    assert "embeds 32 queries and 32 documents" in said
    assert not folder.exists("teacher") and folder.exists("artifact.json")
    steps = [json.loads(line) for line in folder.read_bytes("metrics.jsonl").splitlines()]
    assert len(steps) == 2 and abs(steps[0]["teacher"]) < 1e-3, "at first the student is the teacher itself"
    assert steps[1]["teacher"] > 1e-6
