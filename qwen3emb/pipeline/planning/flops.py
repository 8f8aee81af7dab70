"""FLOPs of encoding, judging and training, from a model's shape and the lengths of texts. Multiply-adds count twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3emb.pipeline.planning.shapes import ModelShape

__all__ = ["Adapters", "Passes", "Tokens", "adapter_flops", "forward_flops", "head_flops", "training_flops", "tree"]


@dataclass(frozen=True)
class Tokens:
    """What a forward pass computes.

    Attributes:
        count: tokens.
        read: tokens whose last state is read, one of each text; the last layer computes little more than these.
        attended: pairs of a token and one that it attends to.
    """

    count: float
    read: float
    attended: float

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.count + other.count, self.read + other.read, self.attended + other.attended)

    def times(self, factor: float) -> Tokens:
        """So many of the same."""
        return Tokens(self.count * factor, self.read * factor, self.attended * factor)


def tree(prefix: float, leaf: float, leaves: float = 1) -> Tokens:
    """Texts of `leaf` tokens each behind a common prefix that is computed once; a plain text has the prefix 0."""
    shared = prefix * (prefix + 1) / 2
    own = leaves * (leaf * prefix + leaf * (leaf + 1) / 2)
    return Tokens(prefix + leaves * leaf, leaves, shared + own)


def _linear_flops(shape: ModelShape, tokens: Tokens) -> float:
    """2 x weights x tokens; in the last layer only keys and values of all tokens, the rest of those that are read."""
    keys = shape.layer_parameters - shape.read_parameters
    full = (shape.layers - 1) * shape.layer_parameters + keys
    return 2 * (full * tokens.count + shape.read_parameters * tokens.read)


def _attention_flops(shape: ModelShape, tokens: Tokens) -> float:
    """Scores and weighted sums: 2 x 2 x width of all query heads for each attended pair, in every layer."""
    return 4 * shape.query_width * tokens.attended * shape.layers


def forward_flops(shape: ModelShape, tokens: Tokens) -> float:
    """FLOPs of one forward pass of the trunk. Norms, rotations and softmax, which are small, are left out."""
    return _linear_flops(shape, tokens) + _attention_flops(shape, tokens)


def head_flops(shape: ModelShape, answers: float) -> float:
    """FLOPs of the language-model head at so many places."""
    return 2 * shape.embedding_parameters * answers


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters: their rank, and the linear layers that have one."""

    rank: int
    modules: Sequence[str]


def adapter_flops(shape: ModelShape, tokens: Tokens, adapters: Adapters) -> float:
    """FLOPs of the adapters in one forward pass."""
    return 2 * shape.adapter_parameters(adapters.rank, adapters.modules) * tokens.count


@dataclass(frozen=True)
class Passes:
    """What is computed again in a training step.

    Attributes:
        cached: the gradient cache runs each forward pass twice.
        checkpointed: activations are computed again in the backward pass.
        adapters: only these are trained.
    """

    cached: bool = False
    checkpointed: bool = False
    adapters: Adapters | None = None


def training_flops(shape: ModelShape, tokens: Tokens, passes: Passes, answers: float = 0) -> float:
    """FLOPs of the forward and backward passes over `tokens`.

    A backward pass costs two forward passes: the gradient with respect to the inputs, and that to the weights. With
    adapters the second is left out for the frozen weights.

    Args:
        shape: of the model.
        tokens: of the texts, each computed once.
        passes: what is computed again.
        answers: places at which the language-model head is computed (reranker).
    """
    forwards = 1 + passes.cached + passes.checkpointed
    frozen = passes.adapters is not None
    flops = (forwards + (1 if frozen else 2)) * _linear_flops(shape, tokens)
    flops += (forwards + 2) * _attention_flops(shape, tokens)
    flops += (1 + passes.cached + (1 if frozen else 2)) * head_flops(shape, answers)
    if passes.adapters is not None:
        flops += (forwards + 2) * adapter_flops(shape, tokens, passes.adapters)
    return flops
