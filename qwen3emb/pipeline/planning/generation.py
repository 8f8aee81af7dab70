"""How long a generator takes for a request: its prompt is bound by FLOP/s, its answer by the bandwidth of memory.

Reading a prompt multiplies all weights with every token. Writing a token reads all weights and the keys and values of
all sequences that are written at once, as many as the KV cache holds; the more they are, the less of the weights is one
token's share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen3emb.pipeline.planning.assumptions import Assumptions
from qwen3emb.pipeline.planning.flops import forward_flops, head_flops, tree
from qwen3emb.pipeline.planning.hardware import Gpu
from qwen3emb.pipeline.planning.memory import kv_bytes_per_token
from qwen3emb.pipeline.planning.shapes import ModelShape

__all__ = ["Engine", "generation_flops"]


def generation_flops(shape: ModelShape, prompt: float, answer: float) -> float:
    """FLOPs of reading a prompt and writing an answer of so many tokens."""
    texts = tree(0, prompt + answer)
    # Unlike an encoder's, an engine's last layer computes every token.
    return forward_flops(shape, replace(texts, read=texts.count)) + head_flops(shape, answer)


@dataclass(frozen=True)
class Engine:
    """An engine of the generator.

    Attributes:
        shape: of the generator.
        gpu: of which it has `tensor_parallel`.
        tensor_parallel: GPUs.
        sequences: that are written at once, at most.
        assumed: utilisations.
    """

    shape: ModelShape
    gpu: Gpu
    tensor_parallel: int
    sequences: int
    assumed: Assumptions

    @property
    def weights(self) -> float:
        """Bytes of weights on each GPU; an fp8 model keeps its embeddings and head in 16 bits."""
        embeddings = (1 if self.shape.tied else 2) * self.shape.embedding_parameters
        rest = self.shape.parameters() - embeddings
        return (2 * embeddings + (1 if self.shape.float8 else 2) * rest) / self.tensor_parallel

    @property
    def kv_cache(self) -> float:
        """Bytes on each GPU that are left for keys and values; below 0 the weights do not fit."""
        assumed = self.assumed
        return self.gpu.memory * assumed.engine_memory - self.weights - assumed.engine_working_gb * 1e9

    @property
    def kv_tokens(self) -> float:
        """Tokens that the KV cache holds."""
        return max(0.0, self.kv_cache) / kv_bytes_per_token(self.shape, self.tensor_parallel)

    def seconds(self, prompt: float, answer: float, read: float | None = None) -> float:
        """Seconds per request, of one engine that always has enough of them.

        Args:
            prompt: tokens of the prompt, which stand in the KV cache.
            answer: tokens written.
            read: tokens of the prompt that are computed, the others are in the prefix cache; default all.
        """
        computed = prompt if read is None else read
        eight = self.shape.float8 and self.gpu.float8 > 0
        peak = self.gpu.float8 if eight else self.gpu.bfloat16
        share = self.assumed.prefill_utilisation_fp8 if eight else self.assumed.prefill_utilisation
        prefill = generation_flops(self.shape, computed, 0) / (peak * share * self.tensor_parallel)
        together = max(1.0, min(self.sequences, self.kv_tokens / (prompt + answer)))
        context = (prompt + answer / 2) * kv_bytes_per_token(self.shape, self.tensor_parallel)
        step = (self.weights + together * context) / (self.gpu.bandwidth * self.assumed.decode_bandwidth)
        return prefill + answer * step / together
