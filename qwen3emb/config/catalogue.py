"""Which labelled datasets a run reads: its own, and those it names from a catalogue file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qwen3emb.config.datasets import DOCSTRINGS, SYNTHETIC_DATASETS
from qwen3emb.config.labelled import LabelledConfig, LabelledDatasetConfig
from qwen3emb.core.errors import UserError

__all__ = ["chosen_datasets", "holds_out", "read_catalogue"]

RESERVED = (DOCSTRINGS, *SYNTHETIC_DATASETS)
"""Names of the datasets that the stages corpus and synthesize make; no labelled dataset may have one of them."""


def read_catalogue(path: str) -> dict[str, LabelledDatasetConfig]:
    """The sets of a catalogue: a YAML mapping of name -> `config.labelled.LabelledDatasetConfig`.

    Raises:
        UserError: the file cannot be read, or an entry is not a set.
    """
    try:
        content: Any = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"labelled.catalogue {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"labelled.catalogue {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"labelled.catalogue {path}: expected one entry per set, found {type(content).__name__}")
    sets = {}
    for name, entry in content.items():
        try:
            sets[str(name)] = LabelledDatasetConfig.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise UserError(f"labelled.catalogue {path}: {where}: {first['msg']}") from error
    return sets


def chosen_datasets(cfg: LabelledConfig) -> dict[str, LabelledDatasetConfig]:
    """The sets of the config, then those it uses from the catalogue, by name.

    Raises:
        UserError: a name that the catalogue lacks, that `sets` has as well, or that is reserved.
    """
    chosen = dict(cfg.sets)
    if cfg.use and cfg.catalogue is None:
        raise UserError("labelled.use names sets of a catalogue; give labelled.catalogue, e.g. examples/datasets.yaml")
    catalogue = read_catalogue(cfg.catalogue) if cfg.use and cfg.catalogue else {}
    for name in cfg.use:
        if name not in catalogue:
            near = difflib.get_close_matches(name, catalogue, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise UserError(f"labelled.use: {cfg.catalogue} has no set {name!r}{hint}")
        if name in chosen:
            raise UserError(f"labelled.use: {name!r} is in labelled.sets as well; give one of them another name")
        chosen[name] = catalogue[name]
    for name in chosen:
        if name in (*RESERVED, "labelled") or "/" in name:
            raise UserError(f"labelled.sets: a set cannot be named {name!r}; give it another name")
    return chosen


def holds_out(cfg: LabelledConfig) -> bool:
    """Whether queries of a set are held out: nothing that is like one of them may then be trained on."""
    return any(dataset.heldout_share + dataset.dev_share > 0 for dataset in chosen_datasets(cfg).values())
