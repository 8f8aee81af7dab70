"""DeepSpeed on this rank: build, step, save, restore, and the full weights for export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3emb.config.training import OptimizerConfig
from qwen3emb.objective.ranks import rank_and_world

__all__ = ["TAG", "ZeroEngine", "build_engine", "full_weights", "restore", "save", "set_learning_rate"]

TAG = "state"
"""Folder of DeepSpeed's files inside a checkpoint."""


def build_engine(model: Any, cfg: OptimizerConfig, universal: bool = False) -> Any:
    """A DeepSpeed ZeRO engine around `model`, with AdamW on fp32 master weights.

    Must be called on every rank, with torch.distributed running.

    Args:
        model: on its device, in the dtype to train in.
        cfg: optimizer and ZeRO stage.
        universal: whether `restore` will load a universal checkpoint (`resharding.universal`) into the engine.
    """
    import deepspeed
    from torch.optim import AdamW

    # Its shared-memory collectives are compiled at first use, which takes a compiler and a minute; gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    optimizer = AdamW(parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=fused)
    settings = {
        # DeepSpeed only checks these against the world size; our batches are formed by rows and tokens.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": cfg.max_grad_norm,
        "bf16": {"enabled": next(model.parameters()).dtype == torch.bfloat16},
        **({"data_types": {"grad_accum_dtype": "fp32"}} if cfg.gradient_dtype == "float32" else {}),
        "zero_optimization": {"stage": cfg.zero_stage, **_offload(cfg)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def _offload(cfg: OptimizerConfig) -> dict[str, Any]:
    if not cfg.offload or not cfg.zero_stage:
        return {}
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    if cfg.zero_stage == 3:
        offload["offload_param"] = offload["offload_optimizer"]
    return offload


class ZeroEngine:
    """A DeepSpeed engine as `objective.microbatch.StepEngine`: exact global gradients over micro-batches and ranks."""

    def __init__(self, engine: Any) -> None:
        """Wrap an engine of `build_engine`."""
        self.engine = engine

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        return self.engine(**inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of `loss`; only the last backward of a step exchanges gradients (ZeRO 0 and 1)."""
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; the exact global gradient is their sum.
        self.engine.backward(loss * rank_and_world()[1])

    def step(self) -> bool:
        """One optimizer step; False where a gradient was NaN or infinite, and the step was skipped."""
        if self.engine.zero_optimization_stage() == 0 and not self._finite():  # ZeRO 1 to 3 check for themselves
            self.engine.module.zero_grad(set_to_none=True)
            return False
        self.engine.step()
        return not getattr(self.engine.optimizer, "overflow", False)

    def _finite(self) -> bool:
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        device: torch.device = self.engine.device
        return device


def set_learning_rate(engine: Any, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def full_weights(engine: Any) -> dict[str, Tensor]:
    """All weights on the CPU, on rank 0 (every rank must call it: ZeRO-3 gathers)."""
    if engine.zero_optimization_stage() == 3:
        state: dict[str, Tensor] = engine._zero3_consolidated_16bit_state_dict() or {}
        return state
    return {name: tensor.detach().cpu().clone() for name, tensor in engine.module.state_dict().items()}


def save(engine: Any, folder: Path, state: dict[str, Any]) -> None:
    """Write weights, optimizer and `state` of this rank into a shared or rank-local folder."""
    engine.save_checkpoint(str(folder), tag=TAG, client_state=state)


def restore(engine: Any, folder: Path) -> dict[str, Any]:
    """Load what `save` wrote and return its `state`."""
    _, state = engine.load_checkpoint(str(folder), tag=TAG)
    return dict(state)
