"""Dropout is the same after a resume, and in both forwards of the gradient cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3emb.config.training import LoraConfig, LossConfig
from qwen3emb.model.loading import load_tokenizer, load_trunk
from qwen3emb.model.lora import add_adapters
from qwen3emb.objective.embedding_step import StepSettings, embedding_step
from qwen3emb.objective.microbatch import PlainEngine
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.templates import EmbeddingTemplate, TextLimits
from qwen3emb.training.seeding import seed_step

ROWS = [
    TrainingRow("a", "how do I read a file?", "def read(path): ...", ("yes",)),
    TrainingRow("b", "comment ouvrir un fichier ?", "def ouvrir(): ...", ("no", "maybe not", "texts")),
    TrainingRow("c", "lines of the file", "The lines of the file as a list", ()),
]
SETTINGS = StepSettings("find it", "retrieval", 3, TextLimits(64, 96), LossConfig(), 100_000, pack_tokens=60)


def model_of(folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = LoraConfig(rank=4, dropout=0.1, modules=["q_proj", "down_proj"])
    model: torch.nn.Module = add_adapters(load_trunk(folder, "float32"), cfg).train()
    with torch.no_grad():  # B starts at 0, where dropout has no effect
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def trained(folder: Path, steps: int, stop: int | None = None, seed: int = 3) -> dict[str, torch.Tensor]:
    """Adapters after some steps; with `stop`, a process that knows weights and moments only goes on at that step."""
    template, model = EmbeddingTemplate(load_tokenizer(folder), "<|endoftext|>"), model_of(folder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        if step == stop:
            state, moments = model.state_dict(), optimizer.state_dict()
            torch.manual_seed(99)
            model = model_of(folder)
            model.load_state_dict(state)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            optimizer.load_state_dict(moments)
        seed_step(seed, step)
        embedding_step(PlainEngine(model), template, ROWS, SETTINGS)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_steps_after_a_resume_drop_what_the_uninterrupted_run_drops(tiny_qwen3: Path) -> None:
    whole, cut = trained(tiny_qwen3, 4), trained(tiny_qwen3, 4, stop=2)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    other = trained(tiny_qwen3, 4, seed=4)
    assert any(not torch.equal(whole[name], other[name]) for name in whole), "dropout drops nothing"


def test_no_two_steps_and_no_two_seeds_draw_the_same() -> None:
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        seed_step(seed, step)
        drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == 4
    seed_step(0, 1)
    assert tuple(torch.rand(4).tolist()) == drawn[1]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_cache_has_the_gradient_of_the_plain_step(tiny_qwen3: Path, recompute: bool) -> None:
    """The same passes, once with their graphs kept and once computed twice, also where activations are recomputed."""
    template, model = EmbeddingTemplate(load_tokenizer(tiny_qwen3), "<|endoftext|>"), model_of(tiny_qwen3)
    found = []
    for budget, checkpointing in ((100_000, False), (60, recompute)):
        if checkpointing:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        seed_step(5, 0)
        metrics = embedding_step(PlainEngine(model), template, ROWS, replace(SETTINGS, token_budget=budget))
        assert metrics["micro_batches"] > 1
        found.append((metrics["loss"], [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        model.zero_grad(set_to_none=True)
    assert found[0][0] == found[1][0]
    for kept, cached in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(cached, kept, atol=1e-6, rtol=1e-4)
