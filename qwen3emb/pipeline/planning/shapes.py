"""Sizes of decoders, and the numbers of parameters that follow from them. No file is read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["KNOWN", "ModelShape", "shape_of"]


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder of the Llama and Qwen3 families, or of a BERT encoder.

    Attributes:
        layers: decoder layers.
        hidden: width of the residual stream.
        heads, kv_heads, head_dim: query heads, key and value heads, width of a head.
        intermediate: width of the MLP.
        vocabulary: tokens.
        tied: whether the language-model head is the embedding matrix.
        head_norms: whether queries and keys are normalised by head (Qwen3).
        gated: whether the MLP has a gate (three matrices instead of two).
        float8: whether the weights are stored in fp8.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    head_norms: bool = False
    gated: bool = True
    float8: bool = False

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    def linear(self, module: str) -> tuple[int, int]:
        """(inputs, outputs) of a linear layer by its name, e.g. `q_proj`; (0, 0) where there is none."""
        sizes = {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate) if self.gated else (0, 0),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        return sizes.get(module, (0, 0))

    @property
    def read_parameters(self) -> int:
        """Weights of one layer's matrices that only tokens need which are read: q, o and MLP (`model.shortcuts`)."""
        mlp = (3 if self.gated else 2) * self.hidden * self.intermediate
        return 2 * self.hidden * self.query_width + mlp

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        return self.read_parameters + 2 * self.hidden * self.kv_width

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' matrices, which every token is multiplied with."""
        return self.layers * self.layer_parameters

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding matrix, and of a language-model head."""
        return self.vocabulary * self.hidden

    def parameters(self, head: bool = True) -> int:
        """All weights, with the language-model head or without (the trunk); a tied head has none of its own."""
        norms = self.layers * (2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)) + self.hidden
        matrices = 1 if self.tied or not head else 2
        return self.linear_parameters + norms + matrices * self.embedding_parameters

    def adapter_parameters(self, rank: int, modules: Iterable[str]) -> int:
        """Weights of low-rank adapters on the named linear layers of every layer."""
        return self.layers * sum(rank * sum(self.linear(module)) for module in modules)

    @property
    def tensors(self) -> int:
        """Tensors of the trunk's checkpoint."""
        return self.layers * (9 + (2 if self.head_norms else 0)) + 2


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a model's `config.json` describes; None where it lacks one of the sizes."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    if not all(isinstance(config.get(name), int) and config[name] > 0 for name in names):
        return None
    layers, hidden, heads, intermediate, vocabulary = (int(config[name]) for name in names)
    kind = str(config.get("model_type", ""))
    quantised = config.get("quantization_config")
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=bool(config.get("tie_word_embeddings", kind == "bert")),
        head_norms=kind == "qwen3",
        gated="bert" not in kind,
        float8=isinstance(quantised, Mapping) and "fp8" in str(quantised.get("quant_method", "")),
    )


def _qwen3(layers: int, hidden: int, heads: int, intermediate: int, tied: bool) -> ModelShape:
    return ModelShape(layers, hidden, heads, 8, 128, intermediate, 151_936, tied, head_norms=True)


_QWEN3 = {
    "0.6B": _qwen3(28, 1024, 16, 3072, True),
    "4B": _qwen3(36, 2560, 32, 9728, True),
    "8B": _qwen3(36, 4096, 32, 12_288, False),
    "32B": _qwen3(64, 5120, 64, 25_600, False),
}
_EMBEDDING_VOCABULARY = {"0.6B": 151_669, "4B": 151_665, "8B": 151_665}
_SMOLLM2 = ModelShape(30, 576, 9, 3, 64, 1536, 49_152)


def _known() -> dict[str, ModelShape]:
    table = {
        name: _SMOLLM2
        for name in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct")
    }
    for size, shape in _QWEN3.items():
        table[f"Qwen/Qwen3-{size}"] = shape
        table[f"Qwen/Qwen3-{size}-FP8"] = replace(shape, float8=True)
        if size in _EMBEDDING_VOCABULARY:
            table[f"Qwen/Qwen3-{size}-Base"] = table[f"Qwen/Qwen3-Reranker-{size}"] = shape
            table[f"Qwen/Qwen3-Embedding-{size}"] = replace(shape, vocabulary=_EMBEDDING_VOCABULARY[size])
    minilm = ModelShape(6, 384, 12, 12, 32, 1536, 30_522, gated=False)
    return table | dict.fromkeys(("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"), minilm)


KNOWN = _known()
"""Models whose shape is known without their files: from the `config.json` on their pages (docs/plan.md)."""
