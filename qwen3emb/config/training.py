"""Configuration of the trainings. Imports no torch, ray or vllm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from qwen3emb.config.data import Section

__all__ = [
    "RERANKER",
    "DatasetConfig",
    "DistillConfig",
    "DistillTeacherConfig",
    "EmbeddingTeacherConfig",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "SupervisedDatasetConfig",
    "SupervisedLossConfig",
    "TeacherConfig",
    "TrainEmbeddingConfig",
    "TrainRerankerConfig",
    "TrainSupervisedConfig",
]


RERANKER = "reranker"
"""In `distill.teacher.model`: the reranker that the run has trained."""


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
    """Documents with the text of a positive of this query (of this row or another one of the batch), and queries with
    this query's text, are masked. Texts are the same where only white space or the Unicode form differs."""
    mrl_dims: list[int] = Field(default_factory=list)
    """Vector prefixes that the loss is summed over besides the full dimension (Matryoshka)."""
    mrl_weights: list[float] | None = None
    """One weight per `mrl_dims` entry, default 1 each; the full dimension always weighs 1."""
    hardness: float = Field(default=0.0, ge=0)
    """beta of hard negative sampling (arXiv 2010.04592): each negative's term is weighted by e^(beta x its cosine),
    divided by the mean of these weights over the query's negatives; 0 = all alike. Not in the paper."""
    spread_out: float = Field(default=0.0, ge=0)
    """Weight of a further term, the mean squared cosine between different queries plus that between different positives
    (EmbeddingGemma, arXiv 2509.20354); 0 = none. Retrieval and bitext rows only. Not in the paper."""

    @model_validator(mode="after")
    def _consistent(self) -> LossConfig:
        if self.mrl_weights is not None and len(self.mrl_weights) != len(self.mrl_dims):
            raise ValueError("mrl_weights needs one weight per entry of mrl_dims")
        if any(d < 1 for d in self.mrl_dims):
            raise ValueError("mrl_dims must be positive")
        return self


class SupervisedLossConfig(LossConfig):
    """The loss of the supervised stage: other queries are no negatives, and documents are compared with queries alone,
    as in the follow-up report (arXiv 2601.04720)."""

    query_query: bool = False
    """Other queries as negatives."""
    document_document: bool = False
    """Other documents against this row's positive as negatives."""


class OptimizerConfig(Section):
    """AdamW, its schedule, and how DeepSpeed splits its state."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=10, ge=0)
    """Linear warm-up."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Decay after warm-up, to `min_lr_ratio` of the peak; `wsd` stays at the peak until the last `decay_share`."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the decay, as a share of the peak."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """`wsd`: share of all steps at the end in which the rate falls linearly."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of Adam's two moments."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    offload: bool = False
    """Keep the optimizer's state in CPU memory (ZeRO 1 to 3), and with ZeRO 3 the weights as well."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Weights in the forward pass; the optimizer keeps fp32 masters. `auto`: bfloat16 on GPUs and on CPUs that are fast
    in it, else float32; checkpoints are stored in the dtype of the model that the training starts from."""
    gradient_dtype: Literal["weights", "float32"] = "weights"
    """Gradients of a step's micro-batches are added up in the dtype of the weights, or in float32, which is exact for
    however many and takes 4 bytes more for each parameter of a worker's share (ZeRO 2 and 3)."""

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        if self.gradient_dtype == "float32" and self.dtype != "float32" and self.zero_stage not in (2, 3):
            raise ValueError("gradient_dtype float32 needs zero_stage 2 or 3")
        return self


class LoraConfig(Section):
    """Low-rank adapters (peft) instead of full fine-tuning; exports are merged into ordinary weights."""

    rank: int = Field(default=32, ge=1)
    """r (the follow-up report's 32)."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapters is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"], min_length=1
    )
    """Linear layers that get an adapter (the follow-up report's)."""


_Count = Annotated[int, Field(ge=1)]


class _TrainConfig(Section):
    """Keys that both trainings have."""

    num_workers: _Count | tuple[_Count, _Count] = 2
    """Ray Train workers = world size. `[2, 8]`: as many as there is room for, with two at least; when nodes come or go
    the training goes on from its latest state with another number, on the same global batches."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per worker; default the cores of its node (affinity and CPU quota) / the workers there."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and schedule."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints, each with validation metrics; 0 = only at the end."""
    resume_every: int = Field(default=0, ge=0)
    """Steps between states that a lost training goes on from, beside those of the checkpoints, without validation and
    without a model directory; 0 = only with the checkpoints. A state is also saved when a node is to be reclaimed."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """Latest checkpoints that are kept, for resuming and for merging."""
    max_failures: int = Field(default=2, ge=-1)
    """How often a lost worker group is replaced; -1 = always."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, for long inputs on small memory."""
    token_budget: int = Field(default=16384, ge=16)
    """Activations of this many tokens fit into a worker's memory. A larger share of the global batch is computed twice
    (gradient cache), so activations depend on this and not on the global batch."""
    pack_tokens: int = Field(default=4096, ge=16)
    """Tokens of one packed forward pass. 4096 suits a CPU's caches; on a GPU raise it to `token_budget`. A longer input
    is a pass of its own."""
    max_bad_steps: int = Field(default=3, ge=0)
    """A step whose loss is NaN or infinite is skipped and its rows are written to bad_batches.jsonl; more of them than
    this end the run."""
    stop_after: int = Field(default=0, ge=0)
    """End early after this many validations in a row that are no better than the best before; 0 = never."""
    lora: LoraConfig | None = None
    """Train low-rank adapters only."""

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if not isinstance(value, int) and value[0] > value[1]:
            raise ValueError(f"at least {value[0]} workers and at most {value[1]}; give the smaller number first")
        return value

    @property
    def least_workers(self) -> int:
        """Workers without which the training does not begin."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]


class DatasetConfig(Section):
    """How one dataset of a mixture is trained on; what is not set is as for the stage."""

    weight: float = Field(default=1.0, ge=0)
    """Its share of the batches is proportional to weight x rows ^ (1 / mixture_temperature); 0 leaves it out."""
    task: Literal["retrieval", "bitext", "classification", "sts"] = "retrieval"
    """`classification`: only a row's own negatives count, others may share its class; `sts`: CoSENT on graded pairs."""
    instruction: str | None = None
    """Instruction of its queries; for `sts` of both texts."""
    hard_negatives: int | None = Field(default=None, ge=0)
    """Hard negatives per query."""
    max_query_tokens: int | None = Field(default=None, ge=4)
    """Query length with instruction and end token."""
    max_document_tokens: int | None = Field(default=None, ge=4)
    """Document length with end token."""
    loss: LossConfig | None = None
    """The loss."""


class SupervisedDatasetConfig(DatasetConfig):
    """How the supervised stage trains on one dataset; what is not set is as for the stage."""

    loss: SupervisedLossConfig | None = None
    """The loss."""


class EmbeddingTeacherConfig(Section):
    """A larger embedding model whose cosines are learnt beside the labels (distillation; the paper has none)."""

    model: str
    """Its name, its directory (also one of sentence-transformers), or the address of a server, as for `mine.model`.
    Its vectors may have any length."""
    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the distillation in the loss; the labels have the rest."""
    temperature: float | None = Field(default=None, gt=0)
    """The teacher's scores are divided by it before the softmax; default `loss.temperature` for cosines, 1 for the
    logits of a reranker."""
    workers: int = Field(default=1, ge=1)
    """Workers that compute its vectors or scores, once and before the training."""


class TrainEmbeddingConfig(_TrainConfig):
    """`train_embedding`, the weakly supervised stage (paper sections 2 and 4)."""

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
    loss_tile: int = Field(default=256, ge=1)
    """Rows of the score matrix at a time: memory of the loss is tile x batch."""
    datasets: Mapping[str, DatasetConfig] = Field(default_factory=dict)
    """Settings by name (`docstrings`, `synthetic`, a labelled dataset's): every global batch comes from one dataset."""
    mixture_temperature: float = Field(default=1.0, gt=0)
    """1 = batches in proportion to rows; larger values level the datasets."""
    teacher: EmbeddingTeacherConfig | None = None
    """Distillation: each query's softmax over all documents of the batch follows that of a larger embedding model."""

    @field_validator("datasets")
    @classmethod
    def _renamed(cls, datasets: Mapping[str, DatasetConfig]) -> Mapping[str, DatasetConfig]:
        if "labelled" in datasets:
            raise ValueError("pairs of docstrings and functions have a new name: rename `labelled` to `docstrings`")
        return datasets


class TrainSupervisedConfig(TrainEmbeddingConfig):
    """`train_embedding`, the supervised stage (paper sections 2 and 4)."""

    loss: SupervisedLossConfig = SupervisedLossConfig()
    """The loss."""
    curriculum: Literal["none", "hardness"] = "none"
    """`hardness`: from weak to hard. Retrieval and bitext rows begin without hard negatives, go on with the easiest of
    those that were mined, and have the hardest, as with `none`, from half of the steps on. Not in the paper."""
    datasets: Mapping[str, SupervisedDatasetConfig] = Field(default_factory=dict)
    """Settings by name (`docstrings`, `synthetic`, a labelled dataset's): every global batch comes from one dataset."""


class DistillTeacherConfig(EmbeddingTeacherConfig):
    """Who teaches the embedding model in the stage `distill`."""

    model: str = RERANKER
    """`reranker`, the run's trained reranker (not the merged one); or an embedding model as in `supervised.teacher`."""
    candidates: int = Field(default=4, ge=1)
    """Mined negatives of each query that the reranker scores beside the positive. They are hard negatives of the
    training too, as if `hard_negatives` were at least this; a dataset's own `hard_negatives` stays a limit."""


class DistillConfig(TrainSupervisedConfig):
    """`train_embedding --stage distill`: the supervised model learns the order that the reranker gives each query's
    documents. `datasets` adds to those of `supervised`; the paper has no such stage."""

    teacher: DistillTeacherConfig = DistillTeacherConfig()
    """The teacher: its weight against the contrastive loss, and what it scores."""


class TeacherConfig(Section):
    """A larger reranker whose scores a smaller one learns beside the labels (distillation; the paper has none)."""

    model: str
    """Reranker, a model name or directory."""
    weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the distillation in the loss; the labels have the rest."""
    temperature: float = Field(default=1.0, gt=0)
    """Both logits, log p / (1 - p), are divided by it, and the loss is multiplied with its square."""
    workers: int = Field(default=1, ge=1)
    """Workers that compute its scores, once and before the training."""


class TrainRerankerConfig(_TrainConfig):
    """`train_reranker`: fine-tuning on yes and no (paper section 2), and on the order of a query's documents."""

    queries_per_step: int = Field(default=4, ge=1)
    """Global batch: queries per optimizer step over all workers."""
    start: str | None = None
    """What it starts from: `base` (`models.reranker_base`); `embedding`, the supervised embedding model with the base's
    language-model head (its own where head and embeddings are one tensor), both of one architecture; or the name or
    directory of a model. Default: the model of `reranker_weak` where the run has that stage; else `embedding` where
    `models.reranker_base` is `models.base` or not set, else `base`."""
    loss: Literal["sft", "group", "both"] = "both"
    """`sft`: the paper's, each document by itself is to be answered with "yes" or "no". `group`: cross-entropy over a
    query's documents of the margin between the two (LCE, arXiv 2101.08751): the positive is to have the largest; it
    leaves open how large. `both`: their sum, in which `sft` asks for probabilities; it learns the order more slowly."""
    negatives: int = Field(default=8, ge=1)
    """Hard negatives per query."""
    random_negatives: int = Field(default=0, ge=0)
    """Further negatives per query, drawn from the positives of other queries of its dataset. A candidate list holds
    more than near misses."""
    max_query_tokens: int = Field(default=64, ge=4)
    """Query length inside the template."""
    max_tokens: int = Field(default=512, ge=64)
    """Whole input length; longer documents lose their end."""
    validation_queries: int = Field(default=128, ge=0)
    """Queries that are ranked at each checkpoint and never trained on, drawn over all datasets; their rows are at most
    a tenth of all. With few of them `stop_after` goes by noise."""
    teacher: TeacherConfig | None = None
    """Distillation from another reranker's scores."""
