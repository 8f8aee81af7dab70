"""Weights of a linear merge from the loss on a few examples: LM-Cocktail, and Self-Positioning.

LM-Cocktail (arXiv 2311.13534): weight_k = softmax(-loss_k / T) of each checkpoint's own loss. Self-Positioning (arXiv
2410.15035): the point w(a) = sum_k a_k w_k = base + sum_k a_k (w_k - base), a on the simplex, where the loss is least,
by gradient descent. Its gradient needs no graph through the merge: dL/da_k = <dL/dw, w_k>, summed tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qwen3emb.core.errors import StageFailure
from qwen3emb.merging.stored_weights import Entries, Entry, check_alike, read_base

__all__ = ["Interpolation", "cocktail_weights", "self_position"]


def cocktail_weights(losses: Sequence[float], temperature: float) -> list[float]:
    """softmax(-loss / temperature), which sums to 1.

    Args:
        losses: of each checkpoint on the same examples.
        temperature: LM-Cocktail's 5; larger levels the weights.

    Raises:
        StageFailure: a loss is not finite.
    """
    vector = torch.tensor(losses, dtype=torch.float64)
    if not torch.isfinite(vector).all():
        raise StageFailure(
            f"the losses of the checkpoints are {list(losses)}; one that is not finite cannot be weighed"
        )
    weights: list[float] = torch.softmax(-vector / temperature, dim=0).tolist()
    return weights


class Interpolation:
    """A module whose parameters are set to weighted sums of checkpoints, which are read one tensor at a time."""

    def __init__(self, module: torch.nn.Module, checkpoints: Sequence[Path]) -> None:
        """Open the checkpoints.

        Args:
            module: a model of the checkpoints' architecture; a tied parameter counts once.
            checkpoints: K directories of one model.

        Raises:
            UserError: the checkpoints are not of one model, or not of the module's.
        """
        self.parameters = dict(module.named_parameters())
        like = {n: Entry(Path(), n, "", tuple(parameter.shape)) for n, parameter in self.parameters.items()}
        check_alike(checkpoints)
        self.entries: list[Entries] = [read_base(folder, like) for folder in checkpoints]

    def place(self, weights: Tensor) -> None:
        """Set the parameters to sum_k weights[k] x checkpoint k, summed in float32; weights: (K,)."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                total = torch.zeros(parameter.shape, dtype=torch.float32)
                for weight, entries in zip(weights.tolist(), self.entries, strict=True):
                    total += weight * entries[name].read().float()
                parameter.copy_(total)

    def gradient(self) -> Tensor:
        """(K,) float64: <dL/dw, w_k> from the gradients that the parameters hold."""
        products = torch.zeros(len(self.entries), dtype=torch.float64)
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                # w(a) = sum_k a_k w_k, so dL/da_k = sum over all numbers of dL/dw x w_k: one pass over the
                # checkpoints, no graph.
                slope = parameter.grad.detach().float().cpu()
                for k, entries in enumerate(self.entries):
                    products[k] += (slope * entries[name].read().float()).sum(dtype=torch.float64)
        return products


def self_position(
    space: Interpolation, loss: Callable[[], float], steps: int, lr: float, report: Callable[[str], None]
) -> list[float]:
    """Minimise the loss over weights on the simplex, by Adam on their logits, and return the best weights visited.

    Args:
        space: the checkpoints and the module between them.
        loss: computes the module's loss and leaves its gradient in the parameters.
        steps: number of points that are visited; the first has equal weights.
        lr: learning rate of Adam.
        report: called with one line per step.

    Raises:
        StageFailure: the loss is not finite anywhere.
    """
    # a = softmax(logits) keeps the weights above 0 with sum 1, whatever step Adam takes; zeros are the middle.
    logits = torch.zeros(len(space.entries), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=lr)
    best, chosen = float("inf"), None
    for step in range(steps):
        weights = torch.softmax(logits, dim=0)
        for parameter in space.parameters.values():
            parameter.grad = None
        space.place(weights.detach())
        value = loss()
        report(f"step {step + 1} of {steps}: loss {value:.4f} at {[round(w, 3) for w in weights.tolist()]}")
        if value < best:
            best, chosen = value, weights.tolist()
        optimizer.zero_grad()
        # The constant dL/da, times da/dlogits through the softmax's small graph.
        torch.autograd.backward((weights * space.gradient()).sum())
        optimizer.step()
    if chosen is None:
        raise StageFailure("the loss on the probe rows is not finite anywhere between the checkpoints")
    return chosen
