"""Weights found from losses: LM-Cocktail by hand, Self-Positioning against finite differences and a known answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.merging.positions import Interpolation, cocktail_weights, self_position


def test_cocktail_weights_are_a_softmax_of_the_losses() -> None:
    found = cocktail_weights([1.0, 6.0], 5.0)
    assert found == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert cocktail_weights([2.0, 2.0, 2.0], 0.1) == pytest.approx([1 / 3] * 3)
    with pytest.raises(StageFailure, match="not finite"):
        cocktail_weights([1.0, math.nan], 5.0)


def checkpoint(folder: Path, module: torch.nn.Module, seed: int, prefix: str = "") -> Path:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    folder.mkdir()
    save_file(
        {f"{prefix}{n}": torch.randn(s, generator=generator) for n, s in shapes.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    return folder


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(9))


def test_the_gradient_is_that_of_finite_differences(tmp_path: Path) -> None:
    module = small()
    space = Interpolation(module, [checkpoint(tmp_path / str(i), module, i, "model." * (i % 2)) for i in (1, 3, 5)])

    def value(weights: torch.Tensor) -> torch.Tensor:
        space.place(weights)
        return module(INPUTS).square().sum()

    middle = torch.tensor([0.2, 0.3, 0.5])
    value(middle).backward()
    found = space.gradient()
    step = 1e-2
    for k in range(3):
        moved = torch.eye(3)[k] * step
        wanted = (value(middle + moved) - value(middle - moved)) / (2 * step)
        assert float(found[k]) == pytest.approx(float(wanted.detach()), rel=2e-3)


def test_the_weights_move_to_the_checkpoint_that_solves_the_probe(tmp_path: Path) -> None:
    module = small()
    folders = [checkpoint(tmp_path / str(i), module, i) for i in (1, 2)]
    space = Interpolation(module, folders)
    space.place(torch.tensor([0.0, 1.0]))
    wanted = module(INPUTS).detach()
    losses: list[float] = []

    def loss() -> float:
        found = (module(INPUTS) - wanted).square().mean()
        found.backward()
        losses.append(float(found))
        return losses[-1]

    said: list[str] = []
    weights = self_position(space, loss, 30, 0.3, said.append)
    assert sum(weights) == pytest.approx(1.0)
    assert weights[1] > 0.95
    assert min(losses) < 0.1 * losses[0]
    assert said[0].endswith("at [0.5, 0.5]") and len(said) == 30


def test_a_loss_that_is_nowhere_finite_and_other_models_are_refused(tmp_path: Path) -> None:
    module = small()
    folders = [checkpoint(tmp_path / str(i), module, i) for i in (1, 2)]
    with pytest.raises(StageFailure, match="not finite anywhere"):
        self_position(Interpolation(module, folders), lambda: math.nan, 2, 0.1, lambda line: None)
    with pytest.raises(UserError, match=r"0\.weight"):
        Interpolation(torch.nn.Sequential(torch.nn.Linear(5, 4)), folders)
