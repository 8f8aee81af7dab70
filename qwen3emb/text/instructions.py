"""Which instruction the queries of a dataset carry: the one decision that all stages go by.

A dataset's own is that of the labelled dataset, or of the kind of synthetic rows, unless the stage's `datasets` says
another; every other set has the run's. Training, the thresholds of `filter`, the negatives of `mine` with their veto,
the teacher and the evaluation on held-out rows must ask alike: a negative that is hard for another prompt may be an
easy one, or an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qwen3emb.config.catalogue import RESERVED, chosen_datasets
from qwen3emb.config.datasets import SYNTHETIC_DATASETS, trained_as
from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import DatasetConfig, TrainEmbeddingConfig

__all__ = ["dataset_settings", "given_instructions", "instructions", "labelled_datasets"]


def labelled_datasets(cfg: RunConfig) -> dict[str, DatasetConfig]:
    """How the sets of the stage `labelled` are trained on."""
    return {
        name: DatasetConfig(weight=one.weight, task=one.task, instruction=one.instruction)
        for name, one in chosen_datasets(cfg.labelled).items()
    }


def dataset_settings(
    sets: Mapping[str, DatasetConfig], there: Collection[str], cfg: TrainEmbeddingConfig
) -> dict[str, DatasetConfig]:
    """How each dataset is trained on: as its kind says (`sets`, `trained_as`), then as the stage's `datasets`."""
    found = {name: own for name, own in (dict(sets) | trained_as(set(there))).items() if name in there}
    for name, own in cfg.datasets.items():
        given = own.model_dump(exclude_unset=True)
        found[name] = found[name].model_copy(update={k: getattr(own, k) for k in given}) if name in found else own
    return found


def instructions(cfg: RunConfig, datasets: Collection[str]) -> dict[str, str]:
    """Dataset -> the instruction of its queries, as the supervised stage trains with it."""
    sets = dataset_settings(labelled_datasets(cfg), datasets, cfg.supervised)
    found = {}
    for name in datasets:
        own = sets[name].instruction if name in sets else None
        found[name] = cfg.models.instruction if own is None else own
    return found


def given_instructions(cfg: RunConfig, stage: str) -> dict[str, str]:
    """Those of `instructions` that the config gives a dataset whose queries `filter` or `mine` asks.

    They are part of the identity of these two stages, which ask before the supervised stage does.
    """
    if stage not in ("filter", "mine"):
        return {}
    sets = labelled_datasets(cfg) if stage == "mine" else {}
    asked = instructions(cfg, [*(RESERVED if stage == "mine" else SYNTHETIC_DATASETS), *sets])
    own = {name: one.instruction for name, one in sets.items()}
    own |= {n: one.instruction for n, one in cfg.supervised.datasets.items() if "instruction" in one.model_fields_set}
    return {name: asked[name] for name in sorted(own) if own[name] is not None and name in asked}
