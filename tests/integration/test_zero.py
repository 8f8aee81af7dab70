"""Steps on the real DeepSpeed with two ranks: exact gradients under every ZeRO stage, and batches that are skipped."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from qwen3emb.config_train import LossConfig, OptimizerConfig
from qwen3emb.model.loading import load_tokenizer, load_trunk
from qwen3emb.templates import EmbeddingTemplate
from qwen3emb.train.embedding_step import StepSettings, embedding_step
from qwen3emb.train.microbatch import PlainEngine
from qwen3emb.train.rows import TrainingRow

pytestmark = pytest.mark.integration

ROWS = [
    TrainingRow("a", "how do I read a file?", "def read(path): ...", ("yes",)),
    TrainingRow("b", "comment ouvrir un fichier ?", "def ouvrir(): ...", ("no", "maybe not", "texts")),
    TrainingRow("c", "lines of the file", "The lines of the file as a list", ()),
]
SETTINGS = StepSettings("find it", "retrieval", 3, 64, 96, LossConfig(), 60)
STAGES = (0, 1, 2, 3)
DTYPES = ("float32", "bfloat16")


def template_of(folder: str) -> EmbeddingTemplate:
    return EmbeddingTemplate(load_tokenizer(Path(folder)), "<|endoftext|>")


def worker(rank: int, world: int, folder: str, rendezvous: str, result: str) -> None:
    from deepspeed.utils import safe_get_full_grad

    from qwen3emb.distributed.engine import ZeroEngine, build_engine, full_weights, set_learning_rate

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for stage, dtype in product(STAGES, DTYPES):
        cfg = OptimizerConfig(dtype=dtype, zero_stage=stage, lr=1e-2)
        wrapped = ZeroEngine(build_engine(load_trunk(Path(folder), dtype).train(), cfg))
        set_learning_rate(wrapped.engine, 1e-2)
        embedding_step(wrapped, template_of(folder), ROWS, SETTINGS)
        parameters = list(wrapped.engine.module.named_parameters())
        found[f"gradient {stage} {dtype}"] = {name: safe_get_full_grad(p).clone().cpu() for name, p in parameters}
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
        found[f"steps {stage} {dtype}"] = (
            taken,
            skipped,
            again,
            unchanged,
            finite,
            changed or rank > 0,
            metrics["loss"],
        )
    if rank == 0:
        torch.save(found, result)
    dist.destroy_process_group()


def test_every_zero_stage_has_the_gradient_of_one_process_and_skips_bad_steps(tiny_qwen3: Path, tmp_path: Path) -> None:
    result = str(tmp_path / "found.pt")
    mp.spawn(worker, args=(2, str(tiny_qwen3), str(tmp_path / "rendezvous"), result), nprocs=2)
    model = load_trunk(tiny_qwen3, "float32").train()
    embedding_step(PlainEngine(model), template_of(str(tiny_qwen3)), ROWS, SETTINGS)
    found = torch.load(result)
    for stage in STAGES:
        for name, parameter in model.named_parameters():
            gradient = found[f"gradient {stage} float32"][name]
            torch.testing.assert_close(gradient, parameter.grad, atol=2e-5, rtol=1e-3)
        for dtype in DTYPES:
            *flags, loss = found[f"steps {stage} {dtype}"]
            assert flags == [True, False, True, True, True, True], (stage, dtype, flags)
            assert loss != loss, "the poisoned loss should be NaN"
