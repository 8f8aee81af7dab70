"""The four kinds of synthetic training data (paper section 3), and how rows of each are named and trained on."""

from __future__ import annotations

from qwen3emb.config.training import DataSetConfig

__all__ = ["SYNTHETIC_SETS", "TASKS", "is_synthetic", "origin_of", "trained_as"]

TASKS = ("retrieval", "bitext", "sts", "classification")
"""What may be written from a passage."""

_RETRIEVAL = "synthetic"
_LABELS = 8  # wrong labels of a classification row that are trained against
_INSTRUCTIONS = {
    "bitext": "Given a sentence, retrieve its translation",
    "sts": "Retrieve semantically similar text",
    "classification": "Given a task and a text, retrieve the class that the text belongs to",
}


def origin_of(task: str) -> str:
    """The `origin` of pairs of a task, which is their data set's name in a mixture."""
    return _RETRIEVAL if task == "retrieval" else f"{_RETRIEVAL}_{task}"


SYNTHETIC_SETS = tuple(origin_of(task) for task in TASKS)
"""Names of the data sets that `synthesize` writes."""


def is_synthetic(origin: str) -> bool:
    """Whether pairs of this origin were written by a generator."""
    return origin in SYNTHETIC_SETS


def trained_as(origins: set[str]) -> dict[str, DataSetConfig]:
    """How the synthetic sets among `origins` other than retrieval are trained on: their task and its instruction."""
    return {
        origin_of(task): DataSetConfig.model_validate(
            {"task": task, "instruction": ask, "hard_negatives": _LABELS if task == "classification" else None}
        )
        for task, ask in _INSTRUCTIONS.items()
        if origin_of(task) in origins
    }
