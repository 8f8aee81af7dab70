"""Both sides of the reranker's comparison: one optimizer step on the same queries and documents.

Ours is `reranker_step` on DeepSpeed, whose documents share their query's prefix. sentence-transformers' is a
CrossEncoder of a causal LM with LogitScore and its binary cross entropy, on the whole strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Transformer

from benchmarks.train_sides import INSTRUCTION, LR, MAX_TOKENS, TOKEN_BUDGET
from qwen3emb.config.training import OptimizerConfig, TrainRerankerConfig
from qwen3emb.model.loading import load_causal, load_tokenizer
from qwen3emb.model.packing import pack
from qwen3emb.model.reranker import answer_logits, rerank_tree
from qwen3emb.objective.reranker_step import reranker_step
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.templates import RerankTemplate
from qwen3emb.training.zero import ZeroEngine, build_engine, set_learning_rate

NEGATIVES = 8


def documents(row: TrainingRow) -> list[str]:
    """The positive first."""
    return [row.positive, *row.negatives[:NEGATIVES]]


class OurReranker:
    """Our reranker step on DeepSpeed."""

    def __init__(self, directory: Path) -> None:
        self.template = RerankTemplate(load_tokenizer(directory))
        self.model = load_causal(directory, "bfloat16").train()
        self.engine = ZeroEngine(build_engine(self.model, OptimizerConfig(lr=LR)))
        self.cfg = TrainRerankerConfig(
            steps=1, negatives=NEGATIVES, max_query_tokens=MAX_TOKENS, max_tokens=MAX_TOKENS, token_budget=TOKEN_BUDGET
        )

    def step(self, rows: Sequence[TrainingRow]) -> float:
        """One optimizer step; its loss."""
        set_learning_rate(self.engine.engine, LR)
        found = reranker_step(self.engine, self.template, rows, self.cfg, INSTRUCTION)
        self.engine.step()
        return found["loss"]

    def texts(self, rows: Sequence[TrainingRow]) -> list[str]:
        """What the model reads for each document, cut as ours is."""
        found = []
        for row in rows:
            prefix, leaves = self._tree(row)
            found.extend(self.template.tokenizer.decode([*prefix, *leaf]) for leaf in leaves)
        return found

    def margins(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        """(documents of all rows,) yes minus no."""
        batch = pack([self._tree(row) for row in rows])
        yes, no = self.template.yes_no
        with torch.no_grad():
            logits = answer_logits(self.model, batch)
        margin: torch.Tensor = (logits[:, yes] - logits[:, no]).float()
        return margin

    def _tree(self, row: TrainingRow) -> tuple[list[int], list[list[int]]]:
        limits = {"max_tokens": MAX_TOKENS, "max_query_tokens": MAX_TOKENS}
        return rerank_tree(self.template, row.query, documents(row), **limits, instruction=INSTRUCTION)


class TheirReranker:
    """sentence-transformers' CrossEncoder with LogitScore."""

    def __init__(self, directory: Path, weights: torch.dtype, yes_no: tuple[int, int]) -> None:
        body = Transformer(
            str(directory),
            transformer_task="text-generation",
            max_seq_length=MAX_TOKENS,
            model_kwargs={"dtype": weights},
            # Not its message form: the strings are complete, a chat template would wrap them once more.
            modality_config={"text": {"method": "forward", "method_output_name": "logits"}},
            module_output_name="causal_logits",
        )
        self.model = CrossEncoder(modules=[body, LogitScore(*yes_no)], device="cpu").train()
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.autocast = weights == torch.float32
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """(texts,) yes minus no."""
        features: Any = self.model.preprocess(list(texts))
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.autocast else nullcontext():
            found: torch.Tensor = self.model(features)["scores"].view(-1).float()
        return found

    def step(self, texts: Sequence[str]) -> float:
        """One optimizer step; its loss."""
        labels = torch.tensor([float(n % (1 + NEGATIVES) == 0) for n in range(len(texts))])
        loss = self.loss(self.scores(texts), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
