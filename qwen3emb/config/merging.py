"""Configuration of the stage merge. Imports no torch, ray or vllm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from qwen3emb.config.data import Section

__all__ = ["MergeConfig"]


class MergeConfig(Section):
    """`merge`: checkpoints of the supervised stage become one model (paper section 4)."""

    method: Literal["slerp", "cocktail", "self_position"] = "slerp"
    """How the embedding model is merged. `slerp`: the weighted spherical mean, of two checkpoints SLERP. The others are
    weighted sums, their weights found on `probe_rows` rows of the dev set: `cocktail` (LM-Cocktail) takes
    softmax(-loss / `temperature`) of each checkpoint's loss; `self_position` (arXiv 2410.15035) descends the gradient
    of the loss with respect to the weights. The reranker is always merged by `slerp`, with equal weights there."""
    on: Literal["weights", "task_vectors"] = "task_vectors"
    """What is interpolated: raw weights, or their difference to the base model."""
    last: int = Field(default=2, ge=1)
    """Merge this many checkpoints, the latest ones."""
    weights: list[float] | None = None
    """One weight per checkpoint, oldest first; default equal."""
    keep: Literal["merged", "best"] = "merged"
    """`merged`: the merge that `method` and `last` describe. `best`: each checkpoint by itself and several merges
    (`candidates`) are scored on the dev set; a merge is kept only where it is not worse than the best single
    checkpoint, which is kept otherwise. The same for the reranker, whose merges are by `slerp`."""
    candidates: list[Literal["slerp", "cocktail", "self_position"]] = Field(
        default=["slerp", "cocktail", "self_position"]
    )
    """`keep: best`: methods whose merges of the embedding model are tried after that of `method`. `self_position` takes
    as long as `probe_steps` steps of training, for each set of checkpoints."""
    search: bool = False
    """Score each of these checkpoints, every run of the latest, and the best run with one of its checkpoints weighing
    more, on the dev set; merge the best (embedding model). With `keep: best`, further candidates."""
    probe_rows: int = Field(default=64, ge=2)
    """Dev queries, each with a document that answers it, whose loss decides the weights of the other methods."""
    temperature: float = Field(default=5.0, gt=0)
    """Temperature of `cocktail`'s softmax (LM-Cocktail's 5)."""
    probe_steps: int = Field(default=20, ge=1)
    """Steps of `self_position`, each with all probe rows."""
    probe_lr: float = Field(default=0.1, gt=0)
    """Adam's rate of `self_position`, on the logarithms of the weights."""

    @model_validator(mode="after")
    def _consistent(self) -> MergeConfig:
        if self.method != "slerp" and (self.search or self.weights is not None):
            raise ValueError(f"method {self.method} finds the weights itself; leave weights and search out")
        if self.search and self.weights is not None:
            raise ValueError("search chooses the weights itself; leave weights out")
        if self.weights is not None and len(self.weights) != self.last:
            raise ValueError(f"weights has {len(self.weights)} entries, last is {self.last}")
        return self
