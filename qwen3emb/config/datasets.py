"""Names of the datasets that the pipeline makes itself: docstrings, and four synthetic ones (paper section 3)."""

from __future__ import annotations

from qwen3emb.config.training import DatasetConfig

__all__ = ["DOCSTRINGS", "SYNTHETIC_DATASETS", "TASKS", "dataset_of", "is_synthetic", "trained_as"]

TASKS = ("retrieval", "bitext", "sts", "classification")
"""Kinds of pairs that the generator may write from a passage."""

DOCSTRINGS = "docstrings"
"""Summaries of Python functions with their code, from the stage `corpus`; dev and held-out queries are of this kind."""

_RETRIEVAL = "synthetic"
_LABELS = 8  # wrong labels of a classification row that are trained against
_INSTRUCTIONS = {
    "bitext": "Given a sentence, retrieve its translation",
    "sts": "Retrieve semantically similar text",
    "classification": "Given a task and a text, retrieve the class that the text belongs to",
}


def dataset_of(task: str) -> str:
    """The dataset that pairs written for a task belong to."""
    return _RETRIEVAL if task == "retrieval" else f"{_RETRIEVAL}_{task}"


SYNTHETIC_DATASETS = tuple(dataset_of(task) for task in TASKS)
"""Names of the datasets that `synthesize` writes."""


def is_synthetic(dataset: str) -> bool:
    """Whether the pairs of this dataset are written by the generator."""
    return dataset in SYNTHETIC_DATASETS


def trained_as(datasets: set[str]) -> dict[str, DatasetConfig]:
    """Settings by name of the synthetic ones among `datasets`, without retrieval: task, instruction, hard negatives."""
    return {
        dataset_of(task): DatasetConfig.model_validate(
            {"task": task, "instruction": instruction, "hard_negatives": _LABELS if task == "classification" else None}
        )
        for task, instruction in _INSTRUCTIONS.items()
        if dataset_of(task) in datasets
    }
