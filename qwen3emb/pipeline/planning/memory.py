"""Memory of one worker in bytes: weights, gradients and optimizer by ZeRO stage, activations, KV cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qwen3emb.config.training import OptimizerConfig
from qwen3emb.pipeline.planning.shapes import ModelShape

__all__ = ["Memory", "Trained", "activation_bytes", "encoding_memory", "kv_bytes_per_token", "training_memory"]

_BUCKET = 5e8
"""Numbers in DeepSpeed's bucket of gradients and in that of gathered weights (`reduce_bucket_size`,
`allgather_bucket_size`)."""

_LIVE = 1e9
"""Weights that ZeRO 3 holds gathered at most (`stage3_max_live_parameters`)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU by what they are for."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    kv_cache: float = 0
    buffers: float = 0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(float(part) for part in asdict(self).values())

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        parts: dict[str, float] = asdict(self)
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Trained:
    """How many weights a training has, and how many of them it changes."""

    parameters: float
    trainable: float


def training_memory(trained: Trained, cfg: OptimizerConfig, workers: int, width: int) -> Memory:
    """Weights, gradients, optimizer and DeepSpeed's buffers on one worker; activations are another matter.

    ZeRO 1 splits the optimizer's state over the workers, 2 the gradients too, 3 the weights too. AdamW has two moments
    in float32, and a float32 copy of the weights wherever these have 16 bits or ZeRO splits them.

    Args:
        trained: numbers of weights.
        cfg: ZeRO stage, offload, and the dtype of gradients.
        workers: over which ZeRO splits.
        width: bytes of a weight, 2 or 4.
    """
    stage = cfg.zero_stage
    own = trained.trainable / workers
    copies = 12 if width == 2 or stage else 8
    optimizer = copies * (own if stage else trained.trainable)
    weights = width * trained.parameters / (workers if stage == 3 else 1)
    kept = 4 if cfg.gradient_dtype == "float32" else width
    # What the optimizer's step reads in float32 is made of this worker's share at the end of a step.
    gradients = kept * (own if stage >= 2 else trained.trainable) + (4 * own if stage and kept < 4 else 0)
    bucket = min(trained.trainable, _BUCKET)
    gathered = min(trained.parameters, _LIVE) if stage == 3 else bucket if stage else 0
    if cfg.offload and stage:
        optimizer, gradients = 0, width * bucket
        weights = 0 if stage == 3 else weights
    return Memory(weights, gradients, optimizer, buffers=width * (gathered + (bucket if stage else 0)))


def activation_bytes(shape: ModelShape, tokens: float, width: int, again: float = 0) -> float:
    """What the forward pass of so many tokens keeps for the backward pass.

    Of each layer in the dtype of the weights: both norms' normalised inputs and their outputs (4 x hidden); q, k and v
    as they are attended with, and the result (2 x query width, 2 x KV width), and with norms of the heads q and k once
    more; of the MLP gate, its activation, up, and their product (4 x intermediate). In float32: the inputs of all
    norms, as the transformers library computes them.

    Args:
        shape: of the model.
        tokens: whose passes keep their graphs.
        width: bytes of a number.
        again: with checkpointing the tokens of one pass: only each layer's input is kept, and in the backward pass one
            layer of one pass is computed again; 0 without.
    """
    heads = shape.query_width + shape.kv_width
    stored = 4 * shape.hidden + (3 if shape.head_norms else 2) * heads + 4 * shape.intermediate
    layer = width * stored + 4 * (2 * shape.hidden + (heads if shape.head_norms else 0))
    if again:
        return tokens * shape.layers * width * shape.hidden + min(tokens, again) * layer
    return tokens * shape.layers * layer


def encoding_memory(shape: ModelShape, tokens: float, width: int, head: bool) -> Memory:
    """A worker that encodes texts, `tokens` at a time: weights, and the widest layer's inputs and outputs."""
    widest = 4 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width + 3 * shape.intermediate
    return Memory(weights=width * shape.parameters(head), activations=width * tokens * widest)


def kv_bytes_per_token(shape: ModelShape, tensor_parallel: int = 1) -> float:
    """Keys and values of one token in all layers, 16 bits each, on one of the GPUs that share the heads."""
    heads = max(1.0, shape.kv_heads / tensor_parallel)
    return 2 * 2 * shape.layers * heads * shape.head_dim
