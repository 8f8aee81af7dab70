"""A run whose upstream artifacts are made by hand, and what the four stages say to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from qwen3emb.config.run import RunConfig, load_config
from qwen3emb.core.artifact import StageResult, complete
from qwen3emb.core.context import StageContext
from qwen3emb.core.records import PAIR, PASSAGE
from qwen3emb.core.storage import Storage
from qwen3emb.export.export import export_embedding, export_reranker
from qwen3emb.model.contract import Contract
from qwen3emb.model.encoder import Encoder
from qwen3emb.model.loading import load_causal, load_tokenizer
from qwen3emb.pipeline.stages import identity, stage_folder, stage_inputs
from qwen3emb.text.retrieval_set import RetrievalSet, write_retrieval_set

INSTRUCTION = "Given a description of a function, retrieve the function"
WORDS = "open close parse sort merge count encode walk copy split join hash; file list date tree socket header"
VERBS, THINGS = (part.split() for part in WORDS.split(";"))
NAMES = [(verb, thing) for verb in VERBS for thing in THINGS]


def code(verb: str, thing: str) -> str:
    return f"def {verb}_{thing}(value, limit={len(verb)}):\n    return {thing}.{verb}(value)[:limit]"


def passage(verb: str, thing: str) -> dict[str, str]:
    text = f"A {thing} is a thing that programs {verb}. Before they {verb} it, they ask for its name."
    return {
        "id": f"{verb}.{thing}",
        "title": f"{thing}.{verb}",
        "text": text,
        "language": "en",
        "source": "x",
    }


def written_for(row: dict[str, str]) -> str:
    """The document of a pair that `synthesize` makes of a passage."""
    return f"{row['title']} {row['text']}"


def pair(number: int, query: str, document: str, dataset: str) -> dict[str, Any]:
    texts = dict.fromkeys(["document_id", "persona", "question_type", "difficulty", "words"], "")
    texts["language"] = "sw" if dataset == "synthetic" else "en"  # not what the texts look like
    base = {"id": f"{dataset}-{number}", "query": query, "document": document, "dataset": dataset, "score": None}
    return base | texts


LABELLED = [pair(i, f"{v} the {t}", code(v, t), "docstrings") for i, (v, t) in enumerate(NAMES[:30])]
LABELLED.append(pair(30, LABELLED[0]["query"], code("unlock", "door"), "docstrings"))  # a second answer
PASSAGE_ROWS = [passage(v, t) for v, t in NAMES[:30]]
PASSAGES = [written_for(row) for row in PASSAGE_ROWS]
SYNTHETIC = [pair(i, f"how to {v} a {t}?", PASSAGES[i], "synthetic") for i, (v, t) in enumerate(NAMES[:24])]
HELDOUT = RetrievalSet(
    {f"q{i}": f"{v} the {t}" for i, (v, t) in enumerate(NAMES[30:36])},
    {f"d{i}": ("", code(v, t)) for i, (v, t) in enumerate(NAMES[30:])},
    {f"q{i}": {f"d{i}": 2, f"d{i + 6}": 1} for i in range(6)},
    {f"q{i}": "sw" if i == 2 else "en" for i in range(6)},
)


@dataclass(frozen=True)
class Run:
    """A run with everything upstream of the four stages made by hand."""

    cfg: RunConfig
    config: Path
    base: Path
    instruction: str = INSTRUCTION
    labelled: list[dict[str, Any]] = field(default_factory=lambda: LABELLED)
    synthetic: list[dict[str, Any]] = field(default_factory=lambda: SYNTHETIC)
    passages: list[str] = field(default_factory=lambda: PASSAGES)
    heldout: RetrievalSet = HELDOUT

    def folder(self, stage: str) -> Storage:
        return stage_folder(self.cfg, stage)

    def context(self, stage: str) -> StageContext[RunConfig]:
        return StageContext(self.cfg, stage, self.folder(stage), stage_inputs(self.cfg, stage))

    def finish(self, stage: str, metrics: dict[str, Any] | None = None) -> None:
        """Mark a stage as done."""
        complete(self.folder(stage), identity(self.cfg, stage), StageResult(0, 0, {}, metrics or {}), 0.0)

    def encoder(self, folder: Path) -> Encoder:
        return Encoder(folder, end_token="<|im_end|>", dtype="float32")

    def cosines(self, pairs: list[dict[str, Any]]) -> np.ndarray:
        """(queries, documents) cosines of the weak model."""
        weak = self.encoder(self.folder("weak").local("checkpoints/step_000002"))
        queries = weak.encode([p["query"] for p in pairs], max_tokens=64, instruction=INSTRUCTION)
        return queries @ weak.encode([p["document"] for p in pairs], max_tokens=64).T


def checkpoint(base: Path, folder: Path, seed: int, reranker: bool) -> None:
    """The base with noise on its weights, exported as training does."""
    model, tokenizer = load_causal(base, "float32"), load_tokenizer(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if reranker:
        contract = Contract("reranker", INSTRUCTION, "", 256)
        export_reranker(folder, model.state_dict(), model.config, tokenizer, contract)
        return
    contract = Contract("embedding", INSTRUCTION, "<|im_end|>", 256, model.config.hidden_size)
    export_embedding(folder, model.model.state_dict(), model.config, tokenizer, contract)


def configured(folder: Path, content: dict[str, Any], changes: dict[str, Any]) -> Path:
    content |= {
        "weak": {"steps": 2},
        "supervised": {"steps": 2, "checkpoint_every": 1},
        "reranker": {"steps": 2, "negatives": 2},
        "merge": {"last": 2},
        "evaluate": {"rerank_top": 5, "rerank_max_tokens": 256, "recall_at": [1, 10], "workers": 1},
        "filter": {"max_tokens": 64, "sample": 20, "workers": 1},
        "mine": {"max_tokens": 64, "negatives": 3, "top_k": 6, "skip_top": 1, "workers": 1, "shard_rows": 7},
    }
    content["models"]["end_token"] = "<|im_end|>"
    content["models"]["instruction"] = INSTRUCTION
    for section, values in changes.items():
        content[section] |= values
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def upstream(
    tiny_qwen3: Path,
    tmp_path_factory: pytest.TempPathFactory,
    minimal_run: Callable[[Path, Path], dict[str, Any]],
) -> Run:
    folder = tmp_path_factory.mktemp("score")
    run = Run(load_config(configured(folder, minimal_run(folder, tiny_qwen3), {})), folder / "run.yaml", tiny_qwen3)
    checkpoint(tiny_qwen3, run.folder("weak").local("checkpoints/step_000002"), 1, reranker=False)
    # thresholds in the middle of what the model gives, so that both sides of each rule are there
    middle = float(np.median(np.diag(run.cosines(SYNTHETIC))))
    low = float(np.quantile(np.diag(run.cosines(LABELLED)), 0.2)) + 1e-5
    changes = {"filter": {"threshold": middle}, "mine": {"min_positive": low}}
    run = Run(
        load_config(configured(folder, minimal_run(folder, tiny_qwen3), changes)), folder / "run.yaml", tiny_qwen3
    )
    for stage, seeds in (("supervised", (2, 3)), ("reranker", (4, 5))):
        for step, seed in enumerate(seeds, 1):
            target = run.folder(stage).local(f"checkpoints/step_{step:06d}")
            checkpoint(tiny_qwen3, target, seed, reranker=stage == "reranker")
    corpus = run.folder("corpus")
    corpus.write_table("pairs/a.parquet", pa.Table.from_pylist(LABELLED, schema=PAIR))
    corpus.write_table("passages/a.parquet", pa.Table.from_pylist(PASSAGE_ROWS, schema=PASSAGE))
    write_retrieval_set(corpus / "heldout", HELDOUT)
    synthesize = run.folder("synthesize")
    for name, part in (("a", SYNTHETIC[:10]), ("b", SYNTHETIC[10:])):
        synthesize.write_table(f"pairs/{name}.parquet", pa.Table.from_pylist(part, schema=PAIR))
    names = ["checkpoints/step_000001", "checkpoints/step_000002"]
    for stage in ("corpus", "synthesize"):
        run.finish(stage)
    run.finish("weak", {"model": names[1], "checkpoints": names[1:]})
    for stage in ("supervised", "reranker"):
        run.finish(stage, {"model": names[1], "checkpoints": names})
    return run


@pytest.fixture(scope="session")
def logs(upstream: Run, run_here: Callable[..., str]) -> dict[str, str]:
    """What the four stages said."""
    return {name: run_here(name, upstream.config) for name in ("filter", "mine", "merge", "evaluate")}
