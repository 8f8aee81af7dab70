"""Two shortcuts of a packed forward with the same results: unread tokens are not computed, and a faster RMS norm.

Only the last token of each leaf is read. In the last decoder layer other tokens matter as keys and values alone, so
the query and output projections and the MLP compute just those tokens: exact, and one layer of N nearly for free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qwen3emb.model.packing import PackedBatch

__all__ = ["add_shortcuts"]


class _LastTokens:
    """Hooks of the last layer: only each leaf's last token is computed; other rows of the output are zero."""

    def __init__(self) -> None:
        self.batch: PackedBatch | None = None

    def begin(self, _layer: Any, _inputs: Any, named: dict[str, Any]) -> None:
        """Before the layer: keep the packed batch; a forward without one is not changed."""
        self.batch = named.get("packed")

    def narrow(self, _module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """(1, T, width) -> (1, leaves, width)"""
        if self.batch is None:
            return None
        return (inputs[0].index_select(1, self.batch.last), *inputs[1:])

    def widen(self, _module: Any, _inputs: Any, output: Tensor) -> Tensor:
        """(1, leaves, width) -> (1, T, width)"""
        if self.batch is None:
            return output
        # Back to T rows, because the residual stream has them; nobody reads the zero rows after the last layer.
        empty = output.new_zeros(1, self.batch.tokens, output.shape[2])
        return empty.index_copy(1, self.batch.last, output)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) x weight, rounded where the transformers library rounds."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """(..., width), (width,) -> (..., width)"""
        # Sums of squares in float32; the result is rounded before the weight is applied, as the library does.
        wide = states.float()
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.div_(wide.shape[-1]).add_(epsilon).rsqrt_()
        normal = (wide.mul_(scale) if wide is not states else wide * scale).to(states.dtype)
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Gradients of states and weight."""
        normal, scale, weight = ctx.saved_tensors
        of_weight = (gradient * normal).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        wide, along = (gradient * weight).float(), normal.float()
        # y = x / rms(x): dy/dx leaves what is orthogonal to x, so the share along the normal is taken out.
        share = (wide * along).mean(dim=-1, keepdim=True).neg_()
        return wide.addcmul_(along, share).mul_(scale).to(gradient.dtype), of_weight, None


def add_shortcuts(model: Any) -> None:
    """Add both shortcuts to a decoder of the transformers library; its weights and their names stay as they are.

    Args:
        model: a trunk or a causal LM of the Llama and Qwen3 families, with packed attention.
    """
    trunk = getattr(model, "model", model)
    hooks, layer = _LastTokens(), trunk.layers[-1]
    layer.register_forward_pre_hook(hooks.begin, with_kwargs=True)
    # Not k_proj and v_proj: every token of the last layer is still a key and a value for the last tokens.
    for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
        module.register_forward_pre_hook(hooks.narrow)
        module.register_forward_hook(hooks.widen)
    for module in trunk.modules():
        if type(module).__name__ in ("LlamaRMSNorm", "Qwen3RMSNorm"):
            module.forward = _NormForward(module)


class _NormForward:
    """A norm's forward: `_RmsNorm` on CPU, the library's on CUDA."""

    def __init__(self, module: Any) -> None:
        self.module, self.theirs = module, module.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        if hidden_states.is_cuda:
            theirs: Tensor = self.theirs(hidden_states)
            return theirs
        ours: Tensor = _RmsNorm.apply(hidden_states, self.module.weight, self.module.variance_epsilon)  # type: ignore[no-untyped-call]
        return ours
