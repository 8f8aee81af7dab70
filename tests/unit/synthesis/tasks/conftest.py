"""An item of one passage and its task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.synthesis.tasks.item import Requirement, SynthesisItem
from qwen3emb.synthesis.writer import synthesis_tasks

TEXT = "The ferry does not run on Sundays. Dogs travel free of charge on all boats."
PASSAGE: dict[str, Any] = {"id": "p/1", "text": TEXT, "title": "", "language": "en", "source": "s"}


@pytest.fixture
def item_of() -> Callable[..., tuple[SynthesisItem, Any]]:
    """An item and its task by the task's name, under further config keys."""

    def made(task: str, **config: Any) -> tuple[SynthesisItem, Any]:
        item = SynthesisItem(PASSAGE, TEXT, ["a sailor"], Requirement("5-10", "en", "English"), task=task, shown=TEXT)
        shared = {"personas": "-", "languages": {"English": 1.0, "German": 1.0}, "tasks": {task: 1.0}}
        cfg = SynthesizeConfig.model_validate(shared | config)
        return item, synthesis_tasks(cfg, seed=1)[task]

    return made
