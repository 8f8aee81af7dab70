"""Tokens per second of a generator against published measurements.

GPUStack's performance lab: one H100, total input and output tokens per second of random prompts. Qwen3-32B-FP8 on
TensorRT-LLM 1.2.0rc1 (docs.gpustack.ai/latest/performance-lab/qwen3-32b/h100), Qwen3-14B-FP8 on SGLang 0.5.5 and
Qwen3-14B on vLLM 0.11 (.../qwen3-14b/h100).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen3emb.pipeline.planning.assumptions import Assumptions
from qwen3emb.pipeline.planning.generation import Engine, generation_flops
from qwen3emb.pipeline.planning.hardware import GPUS
from qwen3emb.pipeline.planning.shapes import KNOWN, ModelShape

EIGHT = KNOWN["Qwen/Qwen3-32B-FP8"]
FOURTEEN = replace(EIGHT, layers=40, heads=40, intermediate=17_408)  # config.json of Qwen3-14B
PUBLISHED = [
    (EIGHT, 128, 4, 6826.33),
    (EIGHT, 2000, 100, 5901.95),
    (EIGHT, 4000, 200, 4929.16),
    (EIGHT, 32_000, 100, 4068.16),
    (FOURTEEN, 128, 4, 16_884.75),
    (FOURTEEN, 2000, 100, 14_764.26),
    (FOURTEEN, 4000, 200, 12_257.62),
    (FOURTEEN, 32_000, 100, 10_014.29),
    (replace(FOURTEEN, float8=False), 2000, 100, 10_597.19),
    (replace(FOURTEEN, float8=False), 4000, 200, 9218.03),
    (replace(FOURTEEN, float8=False), 32_000, 100, 8298.56),
]


def engine(shape: ModelShape = EIGHT, gpu: str = "h100", parts: int = 1, sequences: int = 256) -> Engine:
    return Engine(shape, GPUS[gpu], parts, sequences, Assumptions())


@pytest.mark.parametrize(("shape", "prompt", "answer", "published"), PUBLISHED)
def test_published_throughput(shape: ModelShape, prompt: int, answer: int, published: float) -> None:
    rate = (prompt + answer) / engine(shape).seconds(prompt, answer)
    assert rate == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize("answer", [50, 100, 200])
def test_the_papers_150_million_pairs_take_some_290_days(answer: int) -> None:
    """5,900 tokens/s, 1,000 tokens a pair: 294 days of one H100, whatever part of it is written."""
    days = 150e6 * engine().seconds(1000 - answer, answer) / 86_400
    assert days == pytest.approx(150e6 * 1000 / 5900 / 86_400, rel=0.15)


def test_what_the_prefix_cache_has_is_not_read_again() -> None:
    whole, cached = engine().seconds(1000, 50), engine().seconds(1000, 50, read=100)
    assert cached < 0.4 * whole


def test_more_sequences_share_the_reading_of_weights_until_the_cache_is_full() -> None:
    alone, some, many = (engine(sequences=n).seconds(500, 500) for n in (1, 32, 100_000))
    assert alone > 10 * some > 10 * many
    limit = int(engine().kv_tokens / 1000)
    assert engine(sequences=limit + 1).seconds(500, 500) == pytest.approx(many)


def test_weights_and_cache_on_two_gpus_are_halves() -> None:
    sixteen = KNOWN["Qwen/Qwen3-32B"]
    one, two = engine(sixteen), engine(sixteen, parts=2)
    assert one.weights == 2 * two.weights == pytest.approx(65.5e9, rel=0.01)  # model card: 32.8B parameters
    assert one.kv_tokens < two.kv_tokens
    assert engine(sixteen, "l4").kv_cache < 0 and engine(sixteen, "l4").kv_tokens == 0


def test_a_gpu_without_fp8_computes_in_bfloat16() -> None:
    shares = [engine(EIGHT, gpu).seconds(8000, 1) for gpu in ("a100", "h100")]
    assumed = Assumptions()
    expected = (GPUS["h100"].float8 * assumed.prefill_utilisation_fp8) / (312e12 * assumed.prefill_utilisation)
    assert shares[0] / shares[1] == pytest.approx(expected, rel=0.05)


def test_flops_of_a_token_are_twice_the_weights_that_it_meets() -> None:
    per_token = generation_flops(EIGHT, 1, 0)
    assert per_token == pytest.approx(2 * 31.2e9, rel=0.01)  # model card: 31.2B without embeddings
