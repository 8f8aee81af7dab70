"""Runs of the product that a part needs: synthetic pairs of SciFact's documents, and one with the stage `distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.quality.data import DATA, INSTRUCTION, of
from benchmarks.quality.embedding import END_TOKEN, QUERY_TOKENS
from benchmarks.quality.plan import Options
from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.stages import reuse_stages

__all__ = ["distilling_run", "pairs_run"]

SYNTHETIC_PASSAGES = 1500
STEPS_PER_MINUTE = {"supervised": 7, "reranker": 2.4, "distill": 2}  # on two cores, roughly


def _shared(storage: Path) -> dict[str, Any]:
    """The keys that both runs have."""
    corpus = {"kind": "jsonl", "path": str(DATA / "scifact" / "corpus.jsonl.gz"), "id_field": "_id"}
    return {
        "name": "bench",
        "storage": str(storage),
        "models": {
            "base": "smollm2-135m-instruct",
            "generator": "smollm2-135m-instruct",
            "retrieval": "all-minilm-l6-v2",
            "end_token": END_TOKEN,
            "instruction": INSTRUCTION,
        },
        "corpus": {"sources": [corpus], "max_tokens": 256, "max_passages": 10_000},
    }


def _written(config: dict[str, Any], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML
    return file


def _test_set(storage: Path, options: Options) -> Path:
    """A BEIR folder of the test split."""
    folder, test = storage / "test", of(options.split("test"))
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": d, "title": title, "text": text} for d, (title, text) in test.corpus.items()]
    queries = [{"_id": q, "text": text} for q, text in test.queries.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [f"{q}\t{d}\t{grade}\n" for q, grades in test.qrels.items() for d, grade in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return folder


def pairs_run(storage: Path, passages: int = SYNTHETIC_PASSAGES) -> list[str]:
    """The arguments of Python that write synthetic queries for SciFact's documents into `storage`/synthesize.

    The generator's settings are the demo's.
    """
    synthesize = {
        "personas": "examples/personas.jsonl",
        "max_passages": passages,
        "max_passage_tokens": 160,
        "max_model_len": 1024,
        "words": {"5-10": 0.5, "10-20": 0.5},
        "temperature": 0.3,
        "prompt_order": "passage_last",
        "top_p": 1.0,
        "engines": 2,
        "kv_cache_gb": 0.5,
        "max_num_seqs": 32,
        "batch_size": 32,
        "rows_per_block": 32,
    }
    training = {"steps": 1}
    config = _shared(storage) | {"synthesize": synthesize, "weak": training, "supervised": training}
    file = _written(config, storage / "pairs.yaml")
    return ["-m", "jobs.pipeline", "--config", str(file), "--until", "synthesize"]


def distilling_run(storage: Path, options: Options, seed: int, with_it: bool) -> tuple[list[str], Path]:
    """(arguments of Python, folder) of a run on SciFact's labels up to `evaluate`, with or without `distill`.

    Both share the stages before the merge.

    Raises:
        SystemExit: this version has no stage `distill`.
    """
    if "distill" not in RunConfig.model_fields:
        raise SystemExit("quality, distilled: this version has no stage `distill` yet")

    def steps(stage: str) -> int:
        return max(2, round(options.minutes * STEPS_PER_MINUTE[stage]))

    lengths = {"max_query_tokens": QUERY_TOKENS, "max_document_tokens": 128}
    plain = {"temperature": 0.05, "query_query": False, "document_document": False}
    rate = {"lr": 2e-4, "warmup_steps": 8, "schedule": "constant"}
    embedding = {"num_workers": 1, "batch_size": 16, "loss": plain, "optimizer": rate} | lengths
    supervised = embedding | {
        "steps": steps("supervised"),
        "checkpoint_every": max(1, steps("supervised") // 9),
        "keep_checkpoints": 4,
    }
    config = _shared(storage / "distilled") | {
        "seed": seed,
        "labelled": {"sets": {"scifact": {"path": str(DATA / "scifact"), "format": "beir", "split": "train"}}},
        "mine": {"model": "all-minilm-l6-v2", "negatives": 4},
        "supervised": supervised,
        "reranker": {
            "num_workers": 1,
            "steps": steps("reranker"),
            "queries_per_step": 8,
            "negatives": 4,
            "loss": "group",
            "max_query_tokens": 48,
            "max_tokens": 320,
            "validation_queries": 0,
            "optimizer": {"lr": 2e-4, "warmup_steps": 5, "schedule": "wsd", "decay_share": 0.4},
        },
        "distill": embedding | {"steps": steps("distill")},
        "merge": {"last": 4},
        "evaluate": {"dataset": str(_test_set(storage, options)), "compare": [], "rerank_top": 1} | lengths,
    }
    file = _written(config, storage / "distilled.yaml")
    if with_it:
        return ["-m", "jobs.pipeline", "--config", str(file), "--until", "evaluate"], storage / "distilled"
    without = ["distill=null", f"storage={storage / 'merged'}"]
    try:
        reuse_stages(load_config(str(file), without), load_config(str(file), []))
    except UserError as error:
        raise SystemExit(f"quality, distilled: {error}") from error
    sets = [word for change in without for word in ("--set", change)]
    return ["-m", "jobs.pipeline", "--config", str(file), *sets, "--until", "evaluate"], storage / "merged"
