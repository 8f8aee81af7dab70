"""Configuration of training and merging. Imports no torch, ray or vllm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from qwen3emb.config_data import Section

__all__ = ["LossConfig", "MergeConfig", "OptimizerConfig", "TrainEmbeddingConfig", "TrainRerankerConfig"]


class LossConfig(Section):
    """The contrastive loss of the paper's section 2, with a switch for every point it leaves open."""

    temperature: float = Field(default=0.05, gt=0)
    """tau."""
    margin: float = 0.1
    """A negative scoring above s(q, d+) + margin is taken for a false one and masked."""
    query_query: bool = True
    """Other queries as negatives."""
    document_document: bool = True
    """Other documents against this row's positive as negatives."""
    in_batch_hard: bool = True
    """The hard negatives of other rows are among the other documents."""
    mask_identical: bool = True
    """Documents with the positive's text, and queries with this query's text, are masked."""
    mrl_dims: list[int] = Field(default_factory=list)
    """Vector prefixes that the loss is summed over besides the full dimension (Matryoshka)."""
    mrl_weights: list[float] | None = None
    """One weight per `mrl_dims` entry, default 1 each; the full dimension always weighs 1."""

    @model_validator(mode="after")
    def _consistent(self) -> LossConfig:
        if self.mrl_weights is not None and len(self.mrl_weights) != len(self.mrl_dims):
            raise ValueError("mrl_weights needs one weight per entry of mrl_dims")
        if any(d < 1 for d in self.mrl_dims):
            raise ValueError("mrl_dims must be positive")
        return self


class OptimizerConfig(Section):
    """AdamW, its schedule, and how DeepSpeed splits its state."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=10, ge=0)
    """Linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after warm-up, to `min_lr_ratio` of the peak."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Where the decay ends."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's moments."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Weights in the forward pass; the optimizer keeps fp32 masters."""


class _TrainConfig(Section):
    """What both trainings share."""

    num_workers: int = Field(default=2, ge=1)
    """Ray Train workers = world size."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per worker; default the machine's cores / num_workers."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and schedule."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints, each with validation metrics; 0 = only at the end."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """Latest checkpoints that are kept, for resuming and for merging."""
    max_failures: int = Field(default=2, ge=-1)
    """How often a lost worker group is replaced; -1 = always."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, for long inputs on small memory."""


class TrainEmbeddingConfig(_TrainConfig):
    """`train_embedding`: one of its two stages, weak or supervised (paper sections 2 and 4)."""

    batch_size: int = Field(default=16, ge=1)
    """Global batch: queries per optimizer step over all workers."""
    max_query_tokens: int = Field(default=64, ge=4)
    """Query length with instruction and end token."""
    max_document_tokens: int = Field(default=256, ge=4)
    """Document length with end token."""
    hard_negatives: int = Field(default=0, ge=0)
    """Hard negatives per query (supervised stage)."""
    synthetic: bool = True
    """Supervised stage: train on the filtered synthetic pairs as well as on the labelled ones."""
    loss: LossConfig = LossConfig()
    """The loss."""

    @model_validator(mode="after")
    def _divisible(self) -> TrainEmbeddingConfig:
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}")
        return self


class TrainRerankerConfig(_TrainConfig):
    """`train_reranker`: yes / no supervised fine-tuning (paper section 2)."""

    queries_per_step: int = Field(default=4, ge=1)
    """Global batch: queries per optimizer step over all workers."""
    negatives: int = Field(default=8, ge=1)
    """Hard negatives per query, each a "no" beside the positive's "yes"."""
    max_query_tokens: int = Field(default=64, ge=4)
    """Query length inside the template."""
    max_tokens: int = Field(default=512, ge=64)
    """Whole input length; longer documents lose their end."""

    @model_validator(mode="after")
    def _divisible(self) -> TrainRerankerConfig:
        if self.queries_per_step % self.num_workers:
            raise ValueError(
                f"queries_per_step {self.queries_per_step} is not a multiple of num_workers {self.num_workers}"
            )
        return self


class MergeConfig(Section):
    """`merge`: SLERP over the checkpoints of the supervised stage (paper section 4)."""

    on: Literal["weights", "task_vectors"] = "task_vectors"
    """What is interpolated: raw weights, or their difference to the base model."""
    last: int = Field(default=2, ge=1)
    """Merge this many checkpoints, the latest ones."""
    weights: list[float] | None = None
    """One weight per checkpoint, oldest first; default equal."""

    @model_validator(mode="after")
    def _consistent(self) -> MergeConfig:
        if self.weights is not None and len(self.weights) != self.last:
            raise ValueError(f"weights has {len(self.weights)} entries, last is {self.last}")
        return self
