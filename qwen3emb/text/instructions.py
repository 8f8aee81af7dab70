"""The instruction that the queries of each dataset get, the same in all stages.

It is the one in `datasets` of the supervised stage, else that of the labelled dataset or of the synthetic task, else
the run's (`models.instruction`). Training, the thresholds of `filter`, the negatives of `mine` with their veto, the
teacher and the evaluation on held-out rows must use the same one: a negative that is hard under another instruction may
be an easy one, or an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qwen3emb.config.catalogue import RESERVED, chosen_datasets
from qwen3emb.config.datasets import SYNTHETIC_DATASETS, trained_as
from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import DatasetConfig, TrainEmbeddingConfig

__all__ = ["dataset_settings", "given_instructions", "instructions", "labelled_datasets"]


def labelled_datasets(cfg: RunConfig) -> dict[str, DatasetConfig]:
    """Training settings of the datasets of the stage `labelled`, by name."""
    return {
        name: DatasetConfig(weight=labelled.weight, task=labelled.task, instruction=labelled.instruction)
        for name, labelled in chosen_datasets(cfg.labelled).items()
    }


def dataset_settings(
    sets: Mapping[str, DatasetConfig], names: Collection[str], cfg: TrainEmbeddingConfig
) -> dict[str, DatasetConfig]:
    """Training settings of each dataset: those of `sets` and `trained_as`, overridden by the stage's `datasets`.

    Args:
        sets: settings of labelled datasets, by name.
        names: of the datasets that the rows are from; others are left out, save those in the stage's `datasets`.
        cfg: the training stage.
    """
    settings = {name: kind for name, kind in (dict(sets) | trained_as(set(names))).items() if name in names}
    for name, stage in cfg.datasets.items():
        changed = {key: getattr(stage, key) for key in stage.model_dump(exclude_unset=True)}
        settings[name] = settings[name].model_copy(update=changed) if name in settings else stage
    return settings


def instructions(cfg: RunConfig, datasets: Collection[str]) -> dict[str, str]:
    """Dataset -> the instruction of its queries, as the supervised stage trains with it."""
    sets = dataset_settings(labelled_datasets(cfg), datasets, cfg.supervised)
    chosen = {}
    for name in datasets:
        instruction = sets[name].instruction if name in sets else None
        chosen[name] = cfg.models.instruction if instruction is None else instruction
    return chosen


def given_instructions(cfg: RunConfig, stage: str) -> dict[str, str]:
    """Those of `instructions` that are configured for a dataset, where `stage` is `filter` or `mine`; else none.

    They are part of the identity of these two stages, which embed queries before the supervised stage does.
    """
    if stage not in ("filter", "mine"):
        return {}
    sets = labelled_datasets(cfg) if stage == "mine" else {}
    chosen = instructions(cfg, [*(RESERVED if stage == "mine" else SYNTHETIC_DATASETS), *sets])
    configured = {name: dataset.instruction for name, dataset in sets.items()}
    configured |= {
        name: dataset.instruction
        for name, dataset in cfg.supervised.datasets.items()
        if "instruction" in dataset.model_fields_set
    }
    return {name: chosen[name] for name in sorted(configured) if configured[name] is not None and name in chosen}
