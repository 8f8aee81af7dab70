"""Real DeepSpeed with two ranks: exact gradients under every ZeRO stage, skipped batches, another world size."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from qwen3emb.config.training import LoraConfig, LossConfig, OptimizerConfig, TrainEmbeddingConfig
from qwen3emb.model.loading import load_tokenizer, load_trunk
from qwen3emb.model.lora import add_adapters, merged_weights
from qwen3emb.objective.embedding_step import StepSettings, embedding_step
from qwen3emb.objective.microbatch import PlainEngine
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.templates import EmbeddingTemplate, TextLimits
from qwen3emb.training.tasks import EmbeddingTask

pytestmark = pytest.mark.integration

ROWS = [
    TrainingRow("a", "how do I read a file?", "def read(path): ...", ("yes",)),
    TrainingRow("b", "comment ouvrir un fichier ?", "def ouvrir(): ...", ("no", "maybe not", "texts")),
    TrainingRow("c", "lines of the file", "The lines of the file as a list", ()),
]
SETTINGS = StepSettings("find it", "retrieval", 3, TextLimits(64, 96), LossConfig(), 60)
LORA = LoraConfig(rank=4, alpha=8, modules=["q_proj", "down_proj"])


class Case(NamedTuple):
    stage: int
    dtype: str
    lora: bool = False
    offload: bool = False
    recompute: bool = False  # activation checkpointing
    keep: bool = False  # graphs of several micro-batches instead of the gradient cache


CASES = (
    *(Case(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("float32", "bfloat16")),
    *(Case(stage, "float32", lora=True) for stage in (1, 3)),
    *(Case(stage, "float32", offload=True) for stage in (2, 3)),
    *(Case(stage, "float32", recompute=True, lora=stage == 3) for stage in (1, 3)),
    *(Case(stage, "float32", keep=True) for stage in (0, 2, 3)),
)
SHARDED = (0, 1, 3)  # DeepSpeed keeps the state of ZeRO 2 as that of ZeRO 1


def template_of(folder: str) -> EmbeddingTemplate:
    return EmbeddingTemplate(load_tokenizer(Path(folder)), "<|endoftext|>")


def model_of(folder: str, case: Case) -> Any:
    """The tiny trunk; adapters are drawn from the same seed everywhere."""
    torch.manual_seed(0)
    model = load_trunk(Path(folder), case.dtype)
    if case.recompute:
        model.gradient_checkpointing_enable()
    return add_adapters(model, LORA).train() if case.lora else model.train()


def leave() -> None:
    """End this rank at once when all are done: an idle thread of gloo has aborted a process at interpreter exit."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)


def worker(rank: int, world: int, folder: str, rendezvous: str, result: str) -> None:
    from deepspeed.utils import safe_get_full_grad

    from qwen3emb.training.zero import ZeroEngine, build_engine, full_weights, set_learning_rate

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found: dict[Case, Any] = {}
    for case in CASES:
        cfg = OptimizerConfig(dtype=case.dtype, zero_stage=case.stage, offload=case.offload, lr=1e-2)
        wrapped = ZeroEngine(build_engine(model_of(folder, case), cfg))
        set_learning_rate(wrapped.engine, 1e-2)
        settings = replace(SETTINGS, token_budget=10_000, pack_tokens=60) if case.keep else SETTINGS
        embedding_step(wrapped, template_of(folder), ROWS, settings)
        trained = [(n, p) for n, p in wrapped.engine.module.named_parameters() if p.requires_grad]
        gradients = {name: safe_get_full_grad(p).clone().cpu() for name, p in trained}
        taken = wrapped.step()
        after = {k: v.clone() for k, v in full_weights(wrapped.engine).items()}
        # Gradients that are not numbers: the step is skipped, and the next one is as good as ever.
        poisoned = replace(SETTINGS, loss=LossConfig(mrl_dims=[16], mrl_weights=[float("nan")]))
        metrics = embedding_step(wrapped, template_of(folder), ROWS, poisoned)
        skipped = wrapped.step()
        same = full_weights(wrapped.engine)
        unchanged = all(torch.equal(after[k], same[k]) for k in after)
        embedding_step(wrapped, template_of(folder), ROWS, SETTINGS)
        again = wrapped.step()
        moved = full_weights(wrapped.engine)
        finite = all(torch.isfinite(v).all() for v in moved.values())
        changed = any(not torch.equal(after[k], moved[k]) for k in after)
        flags = [taken, skipped, again, unchanged, finite, changed or rank > 0]
        found[case] = gradients, flags, metrics["loss"], moved
    if rank == 0:
        torch.save(found, result)
    leave()


def test_every_zero_stage_has_the_gradient_of_one_process_and_skips_bad_steps(tiny_qwen3: Path, tmp_path: Path) -> None:
    result = str(tmp_path / "found.pt")
    mp.spawn(worker, args=(2, str(tiny_qwen3), str(tmp_path / "rendezvous"), result), nprocs=2)
    found = torch.load(result, weights_only=False)
    base = load_file(tiny_qwen3 / "model.safetensors")
    for case, (gradients, flags, loss, moved) in found.items():
        assert flags == [True, False, True, True, True, True], (case, flags)
        assert loss != loss, "the poisoned loss should be NaN"
        if case.dtype == "float32":
            model = model_of(str(tiny_qwen3), case)
            embedding_step(PlainEngine(model), template_of(str(tiny_qwen3)), ROWS, SETTINGS)
            wanted = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            assert gradients.keys() == wanted.keys()
            for name, gradient in wanted.items():
                torch.testing.assert_close(gradients[name], gradient, atol=2e-5, rtol=1e-3, msg=f"{case}: {name}")
        if case.lora:
            merged = merged_weights(moved, LORA)
            different = {n for n, w in merged.items() if not torch.equal(w, base[f"model.{n}"])}
            assert {n.split(".")[-2] for n in different} == {"q_proj", "down_proj"}, case


def many(rank: int, world: int, rendezvous: str, result: str) -> None:
    """300 micro-batches whose gradient is one each; bf16 cannot count them."""
    from deepspeed.utils import safe_get_full_grad

    from qwen3emb.training.zero import ZeroEngine, build_engine

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = {}
    for stage in (2, 3):
        for dtype in ("weights", "float32"):
            cfg = OptimizerConfig(zero_stage=stage, gradient_dtype=dtype)
            model = torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
            wrapped = ZeroEngine(build_engine(model, cfg))
            for batch in range(300):
                output = wrapped.engine(torch.ones(1, 4, dtype=torch.bfloat16))
                wrapped.backward(output.float().sum(), last=batch == 299)
            [weight] = wrapped.engine.module.parameters()
            found[stage, dtype] = safe_get_full_grad(weight).float().mean().item()
            taken = wrapped.step()
            wrapped.backward(wrapped.engine(torch.full((1, 4), float("nan"), dtype=torch.bfloat16)).float().sum(), True)
            found[stage, dtype, "steps"] = (taken, wrapped.step())
    if rank == 0:
        torch.save(found, result)
    leave()


def test_gradients_of_many_micro_batches_are_added_up_in_float32(tmp_path: Path) -> None:
    result = str(tmp_path / "found.pt")
    mp.spawn(many, args=(2, str(tmp_path / "rendezvous"), result), nprocs=2)
    found = torch.load(result, weights_only=False)
    for stage in (2, 3):
        assert found[stage, "float32"] == 600, "the sum over both ranks"
        assert found[stage, "weights"] < 600, "if bf16 counts them, this test proves nothing"
        for dtype in ("weights", "float32"):
            assert found[stage, dtype, "steps"] == (True, False), "a step with NaN is skipped"


def stretch(rank: int, world: int, folder: str, to: str, source: str, marks: tuple[int, int, int]) -> None:
    """Go on from the state in `source` at step marks[0], leave one in `to` at marks[1], and weights at marks[2]."""
    from qwen3emb.training.resharding import saved_world_size, universal
    from qwen3emb.training.zero import ZeroEngine, build_engine, full_weights, restore, save, set_learning_rate

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{to}/store", rank=rank, world_size=world)
    for stage in SHARDED:
        place, resharded = Path(source) / str(stage), False
        if source and saved_world_size(place) not in (None, world):
            place, resharded = universal(place, Path(to) / f"universal-{stage}"), True
        cfg = OptimizerConfig(dtype="float32", zero_stage=stage, weight_decay=0.1)
        wrapped = ZeroEngine(build_engine(load_trunk(Path(folder), "float32").train(), cfg, universal=resharded))
        if source:
            assert restore(wrapped.engine, place)["step"] == marks[0]
        for step in range(marks[0], marks[2]):
            if step == marks[1]:
                save(wrapped.engine, Path(to) / str(stage), {"step": step})
            set_learning_rate(wrapped.engine, 1e-2 / (1 + step))
            rows = [ROWS[step % 3], ROWS[(step + 1) % 3]]
            embedding_step(wrapped, template_of(folder), rows, SETTINGS)
            wrapped.step()
        weights = full_weights(wrapped.engine)
        if rank == 0:
            torch.save(weights, Path(to) / f"weights-{stage}.pt")
    leave()


def test_another_world_size_goes_on_where_the_first_one_stopped(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Six steps by two ranks, and from their state after two of them on: one by one rank, three by two."""

    def run(name: str, world: int, marks: tuple[int, int, int], source: str = "") -> Path:
        (tmp_path / name).mkdir()
        mp.spawn(stretch, args=(world, str(tiny_qwen3), str(tmp_path / name), source, marks), nprocs=world)
        return tmp_path / name

    whole = run("whole", 2, (0, 2, 6))
    alone = run("alone", 1, (2, 3, 4), str(whole))
    together = run("together", 2, (3, 6, 6), str(alone))
    for stage in SHARDED:
        wanted, got, before = (torch.load(f / f"weights-{stage}.pt") for f in (whole, together, alone))
        for name, tensor in wanted.items():
            torch.testing.assert_close(got[name], tensor, atol=2e-4, rtol=1e-3, msg=f"ZeRO {stage}: {name}")
        assert any(not torch.allclose(got[name], before[name], atol=1e-3) for name in wanted)


def dropped(rank: int, world: int, folder: str, to: str, source: str, marks: tuple[int, int, int]) -> None:
    """As `stretch`, by the steps of the training loop itself, with adapters that have dropout."""
    from qwen3emb.training.loop import TrainJob, _step
    from qwen3emb.training.zero import build_engine, full_weights, restore, save

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{to}/store", rank=rank, world_size=world)
    lora = LORA.model_copy(update={"dropout": 0.1})
    for stage in SHARDED:
        optimizer = OptimizerConfig(dtype="float32", zero_stage=stage, lr=1e-2, warmup_steps=0, schedule="constant")
        cfg = TrainEmbeddingConfig(steps=4, batch_size=2, hard_negatives=3, lora=lora, optimizer=optimizer)
        cfg = cfg.model_copy(update={"token_budget": 60})
        task = EmbeddingTask(cfg, Path(folder), "<|endoftext|>", "find it", None)
        job = TrainJob(task, {"": ROWS}, 3, to, 0)
        torch.manual_seed(job.seed)
        engine = build_engine(task.load("float32").train(), optimizer)
        torch.manual_seed(1000 * marks[0] + rank)  # whatever a new process has drawn before
        if source:
            assert restore(engine, Path(source) / str(stage))["step"] == marks[0]
        for step in range(marks[0], marks[2]):
            if step == marks[1]:
                save(engine, Path(to) / str(stage), {"step": step})
            _step(job, engine, job.mixture(), step)
        weights = full_weights(engine)
        if rank == 0:
            torch.save(weights, Path(to) / f"weights-{stage}.pt")
    leave()


def test_with_dropout_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Four steps by two ranks, and two by new processes from the state after two of them."""
    for name, source, marks in (("whole", "", (0, 2, 4)), ("cut", str(tmp_path / "whole"), (2, 4, 4))):
        (tmp_path / name).mkdir()
        mp.spawn(dropped, args=(2, str(tiny_qwen3), str(tmp_path / name), source, marks), nprocs=2)
    for stage in SHARDED:
        whole, cut = (torch.load(tmp_path / name / f"weights-{stage}.pt") for name in ("whole", "cut"))
        trained = [name for name in whole if ".lora_" in name]
        assert trained and all(torch.equal(whole[name], cut[name]) for name in whole), f"ZeRO {stage}"
