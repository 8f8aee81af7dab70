"""Which instruction the queries of a data set carry: the one decision that all stages go by.

A data set's own is that of the labelled set, or of the kind of synthetic rows, unless the stage's `datasets` says
another; every other set has the run's. Training, the thresholds of `filter`, the negatives of `mine` with their veto,
the teacher and the evaluation on held-out rows must ask alike: a negative that is hard for another prompt may be an
easy one, or an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qwen3emb.config.catalogue import RESERVED, chosen_sets
from qwen3emb.config.datasets import SYNTHETIC_SETS, trained_as
from qwen3emb.config.run import RunConfig
from qwen3emb.config.training import DataSetConfig, TrainEmbeddingConfig

__all__ = ["HELDOUT", "data_sets", "given_instructions", "instructions", "labelled_sets"]

HELDOUT = "labelled"
"""The origin that the held-out and dev queries of the stage `corpus` are from."""


def labelled_sets(cfg: RunConfig) -> dict[str, DataSetConfig]:
    """How the sets of the stage `labelled` are trained on."""
    return {
        name: DataSetConfig(weight=one.weight, task=one.task, instruction=one.instruction)
        for name, one in chosen_sets(cfg.labelled).items()
    }


def data_sets(
    sets: Mapping[str, DataSetConfig], there: Collection[str], cfg: TrainEmbeddingConfig
) -> dict[str, DataSetConfig]:
    """How each data set is trained on: as its kind says (`sets`, `trained_as`), then as the stage's `datasets`."""
    found = {name: own for name, own in (dict(sets) | trained_as(set(there))).items() if name in there}
    for name, own in cfg.datasets.items():
        given = own.model_dump(exclude_unset=True)
        found[name] = found[name].model_copy(update={k: getattr(own, k) for k in given}) if name in found else own
    return found


def instructions(cfg: RunConfig, origins: Collection[str]) -> dict[str, str]:
    """Origin -> the instruction of its queries, as the supervised stage trains with it."""
    sets = data_sets(labelled_sets(cfg), origins, cfg.supervised)
    found = {}
    for name in origins:
        own = sets[name].instruction if name in sets else None
        found[name] = cfg.models.instruction if own is None else own
    return found


def given_instructions(cfg: RunConfig, stage: str) -> dict[str, str]:
    """Those of `instructions` that the config gives a data set whose queries `filter` or `mine` asks.

    They are part of the identity of these two stages, which ask before the supervised stage does.
    """
    if stage not in ("filter", "mine"):
        return {}
    sets = labelled_sets(cfg) if stage == "mine" else {}
    asked = instructions(cfg, [*(RESERVED if stage == "mine" else SYNTHETIC_SETS), *sets])
    own = {name: one.instruction for name, one in sets.items()}
    own |= {n: one.instruction for n, one in cfg.supervised.datasets.items() if "instruction" in one.model_fields_set}
    return {name: asked[name] for name in sorted(own) if own[name] is not None and name in asked}
