"""Synthesis, mining and corpus preparation against what users have: `python -m benchmarks.data [--parts ...]`.

Synthesis: one engine in this process, SmolLM2-135M in bf16, docstrings of the standard library, and an empty prefix
cache before each measurement. `data.generated_tokens_per_s`: both calls of our synthesis, with its prompts, parsing and
gates, and `vllm.LLM.chat` on the very same requests. `data.rows_per_s_by_order`: four queries for each passage with
`synthesize.prompt_order` passage_first, and passage_last.

`data.mining_seconds`, `data.mining_memory`: the negatives of 5,000 queries from 100,000 documents of 384 dimensions,
vectors given, by our sharded search and by sentence-transformers' `mine_hard_negatives` with faiss, each in a process
of its own. `data.corpus_seconds`: the stage `corpus` on a running Ray of two cores, and the same calls in a loop.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from typing import Any

from benchmarks.comparing import Comparison, Outcome, compare, report, seconds
from benchmarks.data_sides import corpus_preparation, mining
from benchmarks.encode import docstrings
from qwen3emb.config.data import SynthesizeConfig
from qwen3emb.model.fetch import fetch_model
from qwen3emb.synthesis.engine import Answer, Question, VllmEngine
from qwen3emb.synthesis.tasks.item import SynthesisItem
from qwen3emb.synthesis.writer import QueryWriter

MODEL = "smollm2-135m-instruct"
PARTS = ("mining", "corpus", "synthesis")
ROUNDS = 3
THREADS = 2
PERSONAS = [f"a {who}" for who in ("nurse", "sailor", "clerk", "teacher", "smith", "pilot", "cook", "judge")]


class Recorder:
    """An engine that notes what it is asked."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.asked: list[list[Question]] = []

    def shown(self, text: str) -> str:
        """As of the engine."""
        return self.engine.shown(text)

    def ask(self, questions: list[Question]) -> list[Answer]:
        """As of the engine."""
        self.asked.append(list(questions))
        return self.engine.ask(questions)


def config(**more: Any) -> SynthesizeConfig:
    """What both comparisons share."""
    base = {"personas": "-", "max_model_len": 2048, "max_passage_tokens": 320, "max_query_tokens": 48, "max_retries": 0}
    base |= {"kv_cache_gb": 2.0, "threads": THREADS, "max_num_seqs": 32, "temperature": 0.3, "words": {"5-10": 1.0}}
    return SynthesizeConfig.model_validate(base | more)


def passages(count: int, shortest: int) -> list[dict[str, str]]:
    """`count` docstrings of at least `shortest` characters."""
    texts = sorted({text for text in docstrings() if len(text) >= shortest})
    chosen = random.Random(0).sample(texts, count)
    shared = {"title": "", "language": "en", "source": "stdlib"}
    return [{"id": f"p{i}", "text": text, **shared} for i, text in enumerate(chosen)]


def items_of(writer: QueryWriter, texts: list[dict[str, str]]) -> list[SynthesisItem]:
    """Fresh items of all passages."""
    return [item for passage in texts for item in writer.items(passage, passage["text"], PERSONAS)]


def synthesis(engine: VllmEngine, cfg: SynthesizeConfig) -> Any:
    """Generated tokens per second, ours and `LLM.chat`'s."""
    found = passages(64, 200)
    recorder = Recorder(engine)
    first = QueryWriter(recorder, cfg, seed=0)  # type: ignore[arg-type]  # it has the two methods that are used
    first.write(items_of(first, found))

    def ours() -> float:
        engine.llm.reset_prefix_cache()
        writer = QueryWriter(engine, cfg, seed=0)
        rows = items_of(writer, found)
        took = seconds(lambda: writer.write(rows))
        return writer.tokens["generated"] / took

    def theirs() -> float:
        engine.llm.reset_prefix_cache()
        outputs: list[Any] = []

        def chat() -> None:
            for asked in recorder.asked:
                sampling = [engine.sampling(question) for question in asked]
                outputs.extend(engine.llm.chat([q.messages for q in asked], sampling, use_tqdm=False))

        took = seconds(chat)
        return sum(len(output.outputs[0].token_ids) for output in outputs) / took

    return compare(Comparison("data.generated_tokens_per_s", must=0.9, aim=0.98), ours, theirs, ROUNDS)


def order(engine: VllmEngine) -> Any:
    """Rows per second with the passage first, and last."""
    found = passages(16, 700)

    def side(name: str) -> float:
        engine.llm.reset_prefix_cache()
        writer = QueryWriter(engine, config(queries_per_passage=4, prompt_order=name), seed=0)
        rows = items_of(writer, found)
        took = seconds(lambda: writer.write(rows))
        share = writer.tokens["cached"] / writer.tokens["prompt"]
        done = sum(row.problem is None for row in rows)
        print(
            f"data: {name}: {took:.1f} s, {writer.tokens['generated']} tokens written, {writer.tokens['prompt']} read, "
            f"{share:.0%} of them from the cache; {done} of {len(rows)} rows pass the gates",
            file=sys.stderr,
        )
        return len(rows) / took

    speed = Comparison("data.rows_per_s_by_order", must=1.3, aim=2.0)
    return compare(speed, lambda: side("passage_first"), lambda: side("passage_last"), ROUNDS)


def engine_comparisons() -> list[Outcome]:
    """Both that need the engine, which keeps its memory until this process ends."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(THREADS), "DO_NOT_TRACK": "1"}
    cfg = config()
    engine = VllmEngine(str(fetch_model(MODEL)), cfg, gpus=False)
    return [synthesis(engine, cfg), order(engine)]


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all where nothing is given")
    parts = parser.parse_args().parts
    outcomes: list[Outcome] = []
    if "mining" in parts:
        outcomes += mining(THREADS)
    if "corpus" in parts:
        outcomes.append(corpus_preparation(THREADS))
    if "synthesis" in parts:
        outcomes += engine_comparisons()
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main())
