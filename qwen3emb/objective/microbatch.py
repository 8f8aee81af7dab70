"""Forward and backward in micro-batches of a token budget: the gradient cache, and plain accumulation.

All ranks run equally many forwards and backwards, because both are collective under ZeRO-3; a rank with fewer
micro-batches repeats one with gradient zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3emb.model.packing import PackedBatch
from qwen3emb.objective.allocator import between_passes
from qwen3emb.objective.ranks import gather_rows

__all__ = ["PlainEngine", "StepEngine", "cached_backward", "most_rounds", "wasted_share"]


class StepEngine(Protocol):
    """A model as a training step uses it: a forward, and a backward that is told which micro-batch is the last."""

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of `loss`; the global gradient is the sum over all ranks and calls."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        ...


class PlainEngine:
    """A module without an engine: for one process, or where the caller sums the gradients over the ranks."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, **inputs: Any) -> Any:
        """The module's output."""
        return self.module(**inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient to the parameters'."""
        torch.autograd.backward(loss)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(self.module.parameters()).device


def most_rounds(micro_batches: int, device: torch.device) -> int:
    """The largest number of micro-batches on any rank."""
    return _most([micro_batches], device)[0]


def _most(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Each number's maximum over the ranks."""
    largest: list[int] = gather_rows(torch.tensor([list(numbers)], device=device)).amax(dim=0).tolist()
    return largest


def cached_backward(
    engine: StepEngine,
    batches: Sequence[PackedBatch],
    forward: Callable[[PackedBatch], Tensor],
    gradient_of: Callable[[Tensor], Tensor],
    token_budget: int,
) -> int:
    """The gradient cache (GradCache): vectors first, their gradient, then forward again and backward.

    Where every rank's micro-batches together are within `token_budget`, their forwards keep their graphs, and nothing
    is computed twice. Otherwise the random state is put back before the second forward, so that dropout drops the same.

    Args:
        engine: forward and backward.
        batches: this rank's micro-batches, at least one.
        forward: micro-batch -> (leaves, D) vectors.
        gradient_of: this rank's vectors, in the order of the batches -> their gradient; called once, on all ranks.
        token_budget: tokens whose activations a rank may keep.

    Returns:
        The number of rounds, the largest number of micro-batches on any rank.
    """
    # The decision must be the same on every rank, since forwards and backwards are collective under ZeRO-3: both
    # numbers are maxima over the ranks.
    rounds, tokens = _most([len(batches), sum(batch.tokens for batch in batches)], engine.device)
    if rounds == 1 or tokens <= token_budget:
        _kept(engine, batches, forward, gradient_of, rounds)
        return rounds
    # Pass 1, no graph: all vectors of this rank, and of each pass the random state that it began with. The loss needs
    # the vectors of the whole global batch at once, but not their graphs; those are what does not fit.
    states, pieces = [], []
    with torch.no_grad():
        for n in range(rounds):
            between_passes(n, engine.device.type)
            states.append(_random_state(engine.device))
            # A rank that is done repeats its last micro-batch until the slowest rank is: nobody may miss a collective.
            pieces.append(forward(batches[min(n, len(batches) - 1)]))
    local = pieces[: len(batches)]
    # (leaves of this rank, D): d loss / d vectors, exact for the global batch; then back in pieces like the batches.
    gradients = torch.split(gradient_of(torch.cat(local)), [len(p) for p in local])
    for n in range(rounds):
        between_passes(n, engine.device.type)
        # Pass 2, with a graph: the same forward again. Without the same random state dropout would drop other units,
        # and the gradient would be that of vectors the loss has never seen.
        with _replayed(states[n], engine.device):
            vectors = forward(batches[min(n, len(batches) - 1)])
        # Chain rule: the gradient of sum(v * g) with g constant is g^T dv/dw, which is d loss / dw of this micro-batch.
        # A repeated micro-batch counts zero times.
        gradient = gradients[n] if n < len(batches) else torch.zeros_like(vectors)
        engine.backward((vectors * gradient).sum(), n + 1 == rounds)
    return rounds


def _kept(
    engine: StepEngine,
    batches: Sequence[PackedBatch],
    forward: Callable[[PackedBatch], Tensor],
    gradient_of: Callable[[Tensor], Tensor],
    rounds: int,
) -> None:
    """All forwards, then one backward through all of them."""
    pieces = [forward(batches[min(n, len(batches) - 1)]) for n in range(rounds)]
    local = torch.cat(pieces[: len(batches)])
    loss = (local * gradient_of(local.detach())).sum()
    # Zero times the repeated vectors: no gradient, but their graphs run backward as on the other ranks.
    for repeated in pieces[len(batches) :]:
        loss = loss + (repeated * 0).sum()
    engine.backward(loss, True)


def wasted_share(useful: int, batches: Sequence[PackedBatch], rounds: int) -> float:
    """Share of the tokens that a rank computes only because other ranks have more micro-batches.

    Args:
        useful: tokens of this rank's texts.
        batches: its micro-batches; the last one is repeated.
        rounds: largest number of micro-batches on any rank.
    """
    computed = sum(batch.tokens for batch in batches) + (rounds - len(batches)) * batches[-1].tokens
    return 1 - useful / computed


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Set the random state to `state` for the block, and back to the present one after it."""
    present = _random_state(device)
    try:
        _set_random_state(state, device)
        yield
    finally:
        _set_random_state(present, device)


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
