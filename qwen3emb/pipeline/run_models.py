"""The models of a run's stages as copies on its storage, which every node can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qwen3emb.config.run import RunConfig
from qwen3emb.model.mirror import is_here, run_model
from qwen3emb.pipeline.stages import STAGES, WORDS, value_at

__all__ = ["copy_models_of_this_machine", "models_of", "with_run_models"]

_Say = Callable[[str], None]


def models_of(cfg: RunConfig, name: str) -> dict[str, str]:
    """Key of the configuration -> model that stage `name` reads; words that stand for a model of the run are none."""
    stage = STAGES[name]
    keys = {*stage.models}
    if "models.reranker_base" in keys:
        keys.add("models.base")  # which stands for it where it is not set
    if stage.tokenizer:
        keys.add(stage.tokenizer if value_at(cfg, stage.tokenizer) else "models.base")
    named = {key: value_at(cfg, key) for key in sorted(keys)}
    return {key: str(model) for key, model in named.items() if model and model not in WORDS.get(key, ())}


def with_run_models(cfg: RunConfig, name: str, say: _Say = lambda _: None) -> RunConfig:
    """The configuration with the models of stage `name` as URIs of the run's copies, which every node can read.

    Models that the run has no copy of yet are copied to its storage.

    Raises:
        UserError: there is no such model.
    """
    for key, model in models_of(cfg, name).items():
        cfg = _replaced(cfg, key.split("."), run_model(cfg.storage, model, say))
    return cfg


def copy_models_of_this_machine(cfg: RunConfig, names: Sequence[str], say: _Say) -> None:
    """Copy the models of some stages that lie here to the run's storage, for drivers that run elsewhere.

    What is not on this machine (a hub model that was never fetched) is left to the stage's own driver.
    """
    for model in sorted({model for name in names for model in models_of(cfg, name).values()}):
        if is_here(model):
            run_model(cfg.storage, model, say)


def _replaced(section: Any, path: Sequence[str], value: str) -> Any:
    """A copy of a section with another value at a path of fields."""
    head, *rest = path
    return section.model_copy(update={head: _replaced(getattr(section, head), rest, value) if rest else value})
