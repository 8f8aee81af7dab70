"""What `synthesize.tasks` may be, and how the datasets that come of it are trained on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.config.datasets import dataset_of, trained_as


def test_each_synthetic_set_is_trained_as_its_task() -> None:
    sets = trained_as({dataset_of(task) for task in ("retrieval", "sts", "classification")})
    assert {name: one.task for name, one in sets.items()} == {
        "synthetic_sts": "sts",
        "synthetic_classification": "classification",
    }
    assert sets["synthetic_classification"].hard_negatives


@pytest.mark.parametrize(
    "config",
    [
        {"tasks": {"bitext": 1.0}},
        {"tasks": {"retrieval": 0.0}},
        {"tasks": {"retrieval": -1.0, "sts": 2.0}},
        {"label_sets": {"x": ["a", "a"]}},
        {"label_sets": {"x": ["a"]}},
    ],
)
def test_impossible_configurations_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SynthesizeConfig(personas="-", **config)
