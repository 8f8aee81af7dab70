"""What every stage's estimate is made with, and what it looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from qwen3emb.config.run import RunConfig
from qwen3emb.pipeline.planning.assumptions import Assumptions
from qwen3emb.pipeline.planning.datasets import Corpus, DatasetSize
from qwen3emb.pipeline.planning.flops import Tokens, tree
from qwen3emb.pipeline.planning.hardware import Gpu
from qwen3emb.pipeline.planning.memory import Memory
from qwen3emb.pipeline.planning.shapes import ModelShape
from qwen3emb.pipeline.planning.texts import Lengths, text_tokens
from qwen3emb.text.templates import RerankTemplate, query_prompt

__all__ = ["Planner", "StageEstimate", "gigabytes"]

PASS_TOKENS = 4096
"""Tokens of one forward pass while texts are encoded (`model.packing.TOKEN_BUDGET`)."""


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will take.

    Attributes:
        name: of the stage.
        rows: that it writes, of a training those that it learns from, of the evaluation queries.
        model: the largest one it runs; empty without one.
        tokens: that models read and write; in a training each text once.
        flops: of all workers.
        gpus: it asks for.
        seconds: wall-clock; None where nothing is known.
        memory: of one GPU, or of one worker without GPUs; None without a model.
        problems: sentences on what cannot be.
        notes: sentences on what is assumed, or takes longest.
    """

    name: str
    rows: float
    model: str = ""
    tokens: float = 0
    flops: float = 0
    gpus: int = 0
    seconds: float | None = None
    memory: Memory | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        """Hours of all its GPUs together."""
        return self.gpus * (self.seconds or 0) / 3600


def gigabytes(number: float) -> str:
    """Bytes as GB with a digit where it matters."""
    return f"{number / 1e9:.1f} GB" if number < 99.5e9 else f"{number / 1e9:.0f} GB"


@dataclass(frozen=True)
class Planner:
    """The run and what is known and assumed about it.

    Attributes:
        cfg: the run.
        assumed: numbers that follow from nothing.
        gpu: of every node; None where the run uses no GPUs.
        gpus: GPUs that there are; None = as many as each stage asks for.
        cores: CPU cores of the machine, or of all nodes.
        corpus, datasets: rows and lengths.
        shape: a model's shape by its name; None for a server.
    """

    cfg: RunConfig
    assumed: Assumptions
    gpu: Gpu | None
    gpus: int | None
    cores: float
    corpus: Corpus
    datasets: list[DatasetSize]
    shape: Callable[[str], ModelShape | None]

    @property
    def width(self) -> int:
        """Bytes of a weight of 16 bits."""
        return 2

    def demand(self, workers: int) -> int:
        """GPUs of so many workers."""
        return workers * self.cfg.cluster.gpus_per_worker

    def seconds(self, flops: float, workers: int, training: bool = False) -> float:
        """Seconds of work that so many workers share, each on one GPU; without GPUs on all cores."""
        assumed = self.assumed
        if self.gpu is None:
            rate = assumed.cpu_training_gflops if training else assumed.cpu_gflops
            return flops / (self.cores * rate * 1e9)
        share = assumed.training_utilisation if training else assumed.encoding_utilisation
        return flops / (workers * self.gpu.bfloat16 * share)

    def start_seconds(self, weights: float) -> float:
        """Seconds until a stage's workers have loaded so many bytes."""
        return self.assumed.start_seconds + weights / (self.assumed.load_gb_per_second * 1e9)

    def words(self, text: str) -> float:
        """Tokens of a text of ours."""
        return text_tokens(text, self.assumed.characters_per_token)

    def queries(self, count: float, length: Lengths, limit: int, instruction: str | None, packs: float = 1) -> Tokens:
        """Encoded queries behind their instruction, which each pass computes once."""
        prompt = self.words(query_prompt(instruction)) if instruction else 0.0
        # The prompt's last token is part of the leaves (`EmbeddingTemplate.encode`), and each ends with the end token.
        prefix, last = max(0.0, prompt - 1), min(1.0, prompt)
        text = length.capped(max(1.0, limit - prompt - 1))
        return tree(prefix, last + text + 1, count / packs).times(packs) if count else Tokens(0, 0, 0)

    def documents(self, count: float, length: Lengths, limit: int) -> Tokens:
        """Encoded documents."""
        return tree(0, length.capped(limit - 1) + 1).times(count)

    def judged(
        self, queries: float, query: float, documents: float, length: Lengths, limit: int, instruction: str | None
    ) -> Tokens:
        """What a reranker reads: `documents` of each query of `query` tokens, behind the template's common part."""
        shared = self.words(RerankTemplate.shared_text("", instruction)) + query
        tail = self.words(RerankTemplate.text("", "", instruction)) - self.words(
            RerankTemplate.shared_text("", instruction)
        )
        room = max(1.0, limit - shared - tail)
        return tree(shared, length.capped(room) + tail, documents).times(queries)

    def checked(self, estimate: StageEstimate, workers_key: str) -> StageEstimate:
        """The estimate with sentences on GPUs that are not there and memory that is too small."""
        problems = list(estimate.problems)
        if self.gpus is not None and estimate.gpus > self.gpus:
            problems.append(
                f"{estimate.name} asks for {estimate.gpus} GPUs, there are {self.gpus}: lower {workers_key}"
            )
        if self.gpu and estimate.memory:
            usable = self.gpu.memory * self.assumed.usable_memory
            if estimate.memory.total > usable and not estimate.problems:
                problems.append(_too_small(estimate, self.gpu, usable))
        return replace(estimate, problems=problems)


_ADVICE = {
    "weights": "raise {0}.optimizer.zero_stage to 3 or {0}.num_workers, or take a GPU with more memory",
    "gradients": "raise {0}.optimizer.zero_stage to 2 or 3, or {0}.num_workers, or set {0}.lora",
    "optimizer": "raise {0}.num_workers or {0}.optimizer.zero_stage, set {0}.optimizer.offload, or {0}.lora",
    "activations": "set {0}.activation_checkpointing, or lower {0}.token_budget and the text limits",
    "kv_cache": "lower {0}.max_num_seqs",
    "buffers": "take a GPU with more memory",
}


def _too_small(estimate: StageEstimate, gpu: Gpu, usable: float) -> str:
    assert estimate.memory is not None
    total, part = estimate.memory.total, estimate.memory.largest
    trains = estimate.name not in ("filter", "mine", "evaluate", "index", "synthesize")
    advice = _ADVICE[part].format(estimate.name) if trains else "take a GPU with more memory, or a smaller model"
    size = gigabytes(getattr(estimate.memory, part))
    return (
        f"{estimate.name} needs {gigabytes(total)} on each GPU, and a worker can fill {gigabytes(usable)} of an "
        f"{gpu.name}'s {gigabytes(gpu.memory)}; the {part.replace('_', ' ')} take {size}: {advice}"
    )
