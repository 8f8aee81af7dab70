"""Low-rank adapters by peft: added before training, merged into ordinary weights on export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qwen3emb.config.training import LoraConfig
from qwen3emb.core.errors import UserError

__all__ = ["add_adapters", "merged_weights"]

_BASE, _ADAPTER = ".base_layer.", ".lora_"


def add_adapters(model: Any, cfg: LoraConfig) -> Any:
    """Put adapters into `cfg.modules` of the model and freeze everything else; the same model.

    Raises:
        UserError: the model has none of these modules.
    """
    import peft

    settings = peft.LoraConfig(
        r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules=list(cfg.modules), bias="none"
    )
    try:
        return peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise UserError(
            f"lora.modules {cfg.modules}: this model has no such layers ({type(model).__name__})"
        ) from error


def merged_weights(state: Mapping[str, Tensor], cfg: LoraConfig) -> dict[str, Tensor]:
    """The state dict without adapters: W + alpha / rank * B A, added in fp32 and rounded once.

    Args:
        state: of a model with adapters, from all ranks.
        cfg: of the adapters.
    """
    out = {}
    for name, tensor in state.items():
        if _ADAPTER in name:
            continue
        stem, base, kind = name.rpartition(_BASE)
        if base and kind == "weight":
            down, up = (state[f"{stem}.lora_{side}.default.weight"].float() for side in "AB")
            tensor = (tensor.float() + cfg.alpha / cfg.rank * (up @ down)).to(tensor.dtype)
        out[f"{stem}.{kind}" if base else name] = tensor
    return out
