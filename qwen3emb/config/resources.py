"""What each kind of Ray task and actor asks of its node: the only place with these numbers.

The stages take them from here, and so does `pipeline.demand`, which says before anything starts whether a cluster can
hold a stage.

A worker with GPUs asks for no logical CPU, and the GPU nodes of `cluster/` offer none. So no task without GPUs can be
placed on such a node, and the autoscaler never starts one for it, not even when all CPU nodes are up (its preference
for CPU nodes ends there; docs/cluster.md). The cores of a GPU node belong to its GPU workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.config.serving import ServeConfig

__all__ = [
    "COUNTER",
    "ENGINES_PER_READER",
    "GATEWAY",
    "MERGE_PIECE",
    "SMALL_TASK",
    "TASK",
    "Bundle",
    "encoder_bundle",
    "engine_bundle",
    "probe_bundle",
    "reader_bundle",
    "replica_bundle",
    "trainer_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """Logical CPUs and GPUs that one task or actor holds, all of them on one node."""

    cpus: float
    gpus: float = 0

    def options(self) -> dict[str, Any]:
        """Ray's options of a task or actor."""
        return {"num_cpus": self.cpus} | ({"num_gpus": self.gpus} if self.gpus else {})

    def resources(self) -> dict[str, float]:
        """Ray's resources by name, without those that are zero."""
        return {name: value for name, value in (("CPU", self.cpus), ("GPU", self.gpus)) if value}


TASK = Bundle(1)
"""Work on CPUs: a group of files, a labelled dataset, a shard of a search, the merge of a model."""

SMALL_TASK = Bundle(0.25)
"""Reading and writing beside the encoders of `index`."""

MERGE_PIECE = Bundle(0.5)
"""A part of a model's tensors, merged beside the task that waits for it."""

COUNTER = Bundle(0)
"""What takes no room: an actor that counts what others do, a task that looks at its node."""

ENGINES_PER_READER = 4

GATEWAY = Bundle(0.25)
"""A replica of `serve` without a model: the HTTP routes, the search."""


def engine_bundle(cfg: SynthesizeConfig, gpus: bool) -> Bundle:
    """An actor with a vLLM engine: `tensor_parallel` GPUs of one node, or `threads` CPUs."""
    return Bundle(0, cfg.tensor_parallel) if gpus else Bundle(cfg.threads)


def reader_bundle(cfg: SynthesizeConfig) -> Bundle:
    """An actor of `synthesize` that reads passages and finds their personas."""
    return Bundle(0, cfg.reader_gpus) if cfg.reader_gpus else Bundle(0.5)


def encoder_bundle(gpus: float) -> Bundle:
    """An actor with an embedding model or a reranker; half a CPU leaves slots free for the tasks that feed it."""
    return Bundle(0, gpus) if gpus else Bundle(0.5)


def trainer_bundle(gpus: float) -> Bundle:
    """A worker of a training."""
    return Bundle(0, gpus) if gpus else Bundle(1)


def probe_bundle(gpus: float) -> Bundle:
    """The task of `merge` that computes losses of checkpoints."""
    return Bundle(0, gpus) if gpus else TASK


def replica_bundle(cfg: ServeConfig) -> Bundle:
    """A replica of `serve` with a model."""
    return Bundle(0, cfg.num_gpus) if cfg.num_gpus else Bundle(cfg.threads)
