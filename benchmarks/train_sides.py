"""Both sides of `make bench-train`'s embedding rows: one optimizer step each, on the same rows and weights.

Ours is what the jobs run: `embedding_step` on DeepSpeed ZeRO-1 with bf16 weights and fp32 masters.
sentence-transformers is driven as its trainer does (autocast to bf16 over fp32 weights), and, to its advantage, also
with bf16 weights; the fastest of its variants counts. FlagEmbedding is driven in the same ways.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from qwen3emb.config.training import LossConfig, OptimizerConfig
from qwen3emb.model.loading import load_tokenizer, load_trunk
from qwen3emb.model.packing import pooled
from qwen3emb.objective.allocator import keep_freed
from qwen3emb.objective.embedding_step import StepSettings, assign_texts, embedding_step, micro_batches
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.templates import EmbeddingTemplate, TextLimits, query_prompt
from qwen3emb.training.zero import ZeroEngine, build_engine, set_learning_rate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
INSTRUCTION = "Given a query, retrieve documents that answer it"
END_TOKEN = "<|im_end|>"
MAX_TOKENS = 512
NEGATIVES = 3
TEMPERATURE = 0.05
LR = 1e-5
TOKEN_BUDGET = 32768  # all graphs are kept, as in the peers' plain variants


def _lines(path: Path) -> Iterable[str]:
    found = path if path.exists() else path.with_name(path.name + ".gz")
    content = found.read_bytes()
    text = gzip.decompress(content) if found.suffix == ".gz" else content
    yield from text.decode("utf-8").splitlines()


def read_rows(name: str, split: str, negatives: int = NEGATIVES) -> list[TrainingRow]:
    """A BEIR folder's judged pairs with random documents as negatives, shuffled the same way every time."""
    folder = DATA / name
    if not folder.is_dir():
        raise SystemExit(f"bench-train needs the dataset {name} in {DATA}")
    corpus = {}
    for line in _lines(folder / "corpus.jsonl"):
        row = json.loads(line)
        corpus[row["_id"]] = f"{row.get('title') or ''} {row['text']}".strip()
    queries = {row["_id"]: row["text"] for row in map(json.loads, _lines(folder / "queries.jsonl"))}
    pairs = [line.rstrip("\n").split("\t")[:2] for line in _lines(folder / f"qrels/{split}.tsv")][1:]
    draw = random.Random(0)
    draw.shuffle(pairs)
    texts = list(corpus.values())
    return [
        TrainingRow(f"{q}/{d}", queries[q], corpus[d], tuple(draw.sample(texts, negatives)), name) for q, d in pairs
    ]


def shortened(directory: Path, layers: int) -> Path:
    """A copy of the model with its first `layers` layers, in bf16."""
    from transformers import AutoModelForCausalLM

    target = Path(tempfile.mkdtemp(prefix="bench-train-")) / f"{layers}-layers"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]
    model.save_pretrained(target)
    load_tokenizer(directory).save_pretrained(target)
    return target


def alone() -> None:
    """A torch.distributed world of this process, which DeepSpeed asks for, and the jobs' memory settings."""
    keep_freed()
    store = Path(tempfile.mkdtemp(prefix="bench-train-")) / "store"
    os.environ["LOCAL_RANK"] = "0"  # Ray Train sets it
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


class Ours:
    """Our embedding step on DeepSpeed."""

    def __init__(self, directory: Path, token_budget: int = TOKEN_BUDGET) -> None:
        self.template = EmbeddingTemplate(load_tokenizer(directory), END_TOKEN)
        model = load_trunk(directory, "bfloat16").train()
        self.engine = ZeroEngine(build_engine(model, OptimizerConfig(lr=LR)))
        # Neither q-q and d-d terms nor the mask: the peer has none, and the losses must agree.
        loss = LossConfig(temperature=TEMPERATURE, query_query=False, document_document=False, margin=10.0)
        loss = loss.model_copy(update={"mask_identical": False})
        self.settings = StepSettings(
            INSTRUCTION, "retrieval", NEGATIVES, TextLimits(MAX_TOKENS, MAX_TOKENS), loss, token_budget
        )

    def step(self, rows: Sequence[TrainingRow]) -> float:
        """One optimizer step; its loss."""
        set_learning_rate(self.engine.engine, LR)
        found = embedding_step(self.engine, self.template, rows, self.settings)
        self.engine.step()
        return found["loss"]

    def bare(self, rows: Sequence[TrainingRow]) -> int:
        """Forward and backward of the model on the same packed texts, no loss and no optimizer; tokens computed."""
        plan = assign_texts(rows, self.settings.hard_negatives)
        model = self.engine.engine.module
        batches, _ = micro_batches(plan, plan.shares(1)[0], self.template, self.settings)
        for batch in batches:
            pooled(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)
        return sum(batch.tokens for batch in batches)


def peer_columns(tokenizer: Any, rows: Sequence[TrainingRow]) -> list[list[str]]:
    """Anchor, positive and negative columns of texts, cut so that the end token stays, as peers get them."""
    prompt = query_prompt(INSTRUCTION)
    columns = [[prompt + r.query for r in rows], [r.positive for r in rows]]
    columns += [[r.negatives[k] for r in rows] for k in range(NEGATIVES)]
    cut = []
    for texts in columns:
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=MAX_TOKENS - 1)["input_ids"]
        cut.append([text + END_TOKEN for text in tokenizer.batch_decode(ids)])
    return cut


class FlagEmbedding:
    """FlagEmbedding's decoder-only embedder in a process of its own environment ($PEER_PYTHON)."""

    def __init__(self, directory: Path, dtype: str, sub_batch: int, threads: int) -> None:
        script = Path(__file__).parent / "train" / "flag_side.py"
        command = [os.environ["PEER_PYTHON"], str(script)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        settings = {"temperature": TEMPERATURE, "lr": LR, "threads": threads, "sub_batch": sub_batch}
        self._ask({"model": str(directory), "dtype": dtype, **settings})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("train: FlagEmbedding's process ended; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self, columns: Sequence[Sequence[str]]) -> tuple[float, float]:
        """(loss, seconds) of one optimizer step on `peer_columns`; passages stand query by query."""
        passages = [text for group in zip(*columns[1:], strict=True) for text in group]
        answer = self._ask({"queries": list(columns[0]), "passages": passages})
        return answer["loss"], answer["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Theirs:
    """sentence-transformers with MultipleNegativesRankingLoss, plain or cached."""

    def __init__(self, directory: Path, weights: torch.dtype, cached: bool) -> None:
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        # Without a modality config the tokenizer's chat template would be wrapped around every text.
        body = Transformer(
            str(directory),
            max_seq_length=MAX_TOKENS,
            model_kwargs={"dtype": weights},
            modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            module_output_name="token_embeddings",
        )
        body.tokenizer.padding_side = "left"
        pooling = Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
        self.model = SentenceTransformer(modules=[body, pooling, Normalize()], device="cpu").train()
        scale = 1 / TEMPERATURE
        self.loss: Any = (
            CachedMultipleNegativesRankingLoss(self.model, scale=scale, mini_batch_size=16)
            if cached
            else MultipleNegativesRankingLoss(self.model, scale=scale)
        )
        self.autocast = weights == torch.float32
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def step(self, columns: Sequence[Sequence[str]]) -> float:
        """One optimizer step on `peer_columns`; its loss."""
        features = [self.model.preprocess(list(texts)) for texts in columns]
        context: Callable[[], Any] = (
            (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if self.autocast else nullcontext
        )
        with context():
            loss = self.loss(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
