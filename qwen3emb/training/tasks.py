"""The two models that the training loop can train, an embedding model and a reranker, with the same methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3emb.config.training import (
    DatasetConfig,
    LoraConfig,
    TrainEmbeddingConfig,
    TrainRerankerConfig,
    TrainSupervisedConfig,
)
from qwen3emb.export.export import export_embedding, export_reranker
from qwen3emb.metrics.retrieval import retrieval_metrics
from qwen3emb.model.contract import Contract
from qwen3emb.model.encoder import normalised_prefix
from qwen3emb.model.fetch import resolve_model
from qwen3emb.model.loading import (
    dtype_of,
    load_causal,
    load_tokenizer,
    load_trunk,
    replace_trunk,
    require_vocabulary,
    stored_dtype,
)
from qwen3emb.model.lora import add_adapters, merged_weights
from qwen3emb.model.packing import TOKEN_BUDGET, Tree, budgeted, pack, pooled
from qwen3emb.model.reranker import answer_logits, rerank_tree
from qwen3emb.objective.distillation import Teacher, VectorScores, document_scores
from qwen3emb.objective.embedding_step import StepSettings, embedding_step
from qwen3emb.objective.microbatch import StepEngine
from qwen3emb.objective.ranks import gather_rows, rank_and_world
from qwen3emb.objective.reranker_step import reranker_step
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.retrieval_set import RetrievalSet
from qwen3emb.text.templates import EmbeddingTemplate, RerankTemplate, TextLimits
from qwen3emb.training.curriculum import rows_at
from qwen3emb.training.teacher import TeacherVectors

__all__ = ["EmbeddingTask", "RerankerTask"]


def _even(packs: list[list[int]]) -> list[list[int]]:
    """`packs`, the last one repeated until all ranks have the same number: forwards are collective under ZeRO-3."""
    most = int(gather_rows(torch.tensor([len(packs)])).max())
    return packs + [packs[-1] if packs else [0]] * (most - len(packs))


def _forward_all_ranks(trees: Sequence[Tree], forward: Any) -> Tensor:
    """(leaves, width) results of all leaves in order, computed by all ranks together, whole trees on one rank."""
    rank, world = rank_and_world()
    first = list(accumulate((len(leaves) for _, leaves in trees), initial=0))
    mine = list(range(rank, len(trees), world))
    packs = list(budgeted([len(trees[i][0]) + sum(map(len, trees[i][1])) for i in mine], TOKEN_BUDGET))
    numbers: list[int] = []
    results: list[Tensor] = []
    for n, group in enumerate(_even(packs)):
        chosen = [mine[i] if mine else 0 for i in group]
        out = forward(pack([trees[i] for i in chosen]))
        if n < len(packs):
            numbers.extend(leaf for i in chosen for leaf in range(first[i], first[i + 1]))
            results.append(out)
    local = torch.cat(results) if results else out[:0]
    order = gather_rows(torch.tensor(numbers, dtype=torch.long))
    gathered = gather_rows(local.cpu())
    return gathered[torch.argsort(order)]


def _trainable(model: Any, lora: LoraConfig | None) -> Any:
    return model if lora is None else add_adapters(model, lora)


def _to_store(
    weights: dict[str, Tensor], cfg: TrainEmbeddingConfig | TrainRerankerConfig, start: Path
) -> dict[str, Tensor]:
    """The weights of a checkpoint: without adapters, and where `dtype` is auto as the model of the start is stored."""
    weights = weights if cfg.lora is None else merged_weights(weights, cfg.lora)
    if cfg.optimizer.dtype != "auto":
        return weights
    dtype = dtype_of(stored_dtype(start))
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


@dataclass
class EmbeddingTask:
    """Contrastive training of an embedding model (paper section 2).

    Attributes:
        cfg: the stage's section of the configuration.
        model: what training starts from, as `resolve_model` takes it: each node fetches it for itself.
        end_token: token the embedding is read at.
        instruction: of the queries, unless their dataset has one of its own.
        dev: what is searched at each validation.
        teacher_vectors: of `cfg.teacher` where that is an embedding model; a reranker's scores are in the rows.
    """

    cfg: TrainEmbeddingConfig
    model: str | Path
    end_token: str
    instruction: str
    dev: RetrievalSet | None
    dev_instruction: str | None = None  # of the dev set's queries, where it is not the run's
    teacher_vectors: TeacherVectors | None = None

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""
        return self.cfg.batch_size

    @property
    def temperature(self) -> float:
        """Temperature of the mixture of datasets (see `Mixture`)."""
        return self.cfg.mixture_temperature

    def weights(self) -> dict[str, float]:
        """dataset -> its weight in the mixture."""
        return {name: settings.weight for name, settings in self.cfg.datasets.items()}

    def load(self, dtype: str) -> Any:
        """The decoder to train, its weights in `dtype`."""
        if self.teacher_vectors is not None:
            self.teacher_vectors = self.teacher_vectors.here()
        folder = resolve_model(str(self.model))
        self.template = EmbeddingTemplate(load_tokenizer(folder), self.end_token)
        trunk = load_trunk(folder, dtype)
        require_vocabulary(folder, trunk, self.template.tokenizer)
        return _trainable(trunk, self.cfg.lora)

    def rows_at(self, step: int, rows: Sequence[TrainingRow]) -> Sequence[TrainingRow]:
        """The rows of the global batch `step`, all of one dataset, as they are trained on: with `curriculum` that
        step's hard negatives, of retrieval and bitext rows."""
        settings = self.settings(rows[0].dataset)
        hardening = isinstance(self.cfg, TrainSupervisedConfig) and self.cfg.curriculum == "hardness"
        if not hardening or settings.task not in ("retrieval", "bitext"):
            return rows
        return rows_at(step, self.cfg.steps, rows, settings.hard_negatives)

    def step(self, engine: StepEngine, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Gradients of the loss of the global batch, whose rows are of one dataset; its metrics."""
        settings = self.settings(rows[0].dataset)
        return embedding_step(engine, self.template, rows, settings, self._teacher(rows, settings, engine.device))

    def _teacher(self, rows: Sequence[TrainingRow], settings: StepSettings, device: torch.device) -> Teacher | None:
        """What the teacher says of the batch; None without one, and for graded pairs."""
        teacher = self.cfg.teacher
        if teacher is None or settings.task == "sts":
            return None
        if self.teacher_vectors is None:
            temperature = teacher.temperature or 1.0
            return document_scores(rows, settings.hard_negatives, teacher.weight, temperature, device)
        read = self.teacher_vectors.of_batch(rows, settings.hard_negatives)
        queries, documents = (torch.from_numpy(vectors).to(device) for vectors in read)
        return VectorScores(teacher.weight, teacher.temperature or settings.loss.temperature, queries, documents)

    def settings(self, dataset: str) -> StepSettings:
        """The settings for rows of `dataset`: from its section of the configuration, else from the stage's."""
        cfg, section = self.cfg, self.cfg.datasets.get(dataset, DatasetConfig())

        def chosen(name: str) -> Any:
            value = getattr(section, name)
            return getattr(cfg, name) if value is None else value

        return StepSettings(
            instruction=self.instruction if section.instruction is None else section.instruction,
            task=section.task,
            hard_negatives=chosen("hard_negatives"),
            limits=TextLimits(chosen("max_query_tokens"), chosen("max_document_tokens")),
            loss=chosen("loss"),
            token_budget=cfg.token_budget,
            tile=cfg.loss_tile,
            pack_tokens=cfg.pack_tokens,
        )

    def validate(self, engine: Any) -> dict[str, float]:
        """nDCG@10 and MRR@10 on the dev set; empty without one."""
        if self.dev is None or not self.dev.queries:
            return {}
        limits = TextLimits.of(self.cfg)
        instruction = self.instruction if self.dev_instruction is None else self.dev_instruction
        prefix, queries = self.template.queries(list(self.dev.queries.values()), limits, instruction)
        documents = self.template.documents(self.dev.texts(), limits)
        trees: list[Tree] = [*((prefix, [q]) for q in queries), *(([], [d]) for d in documents)]
        with torch.no_grad():
            vectors = _forward_all_ranks(
                trees, lambda batch: normalised_prefix(pooled(engine, batch.to(engine.device)))
            )
        scores = (vectors[: len(queries)] @ vectors[len(queries) :].T).numpy()
        return {f"dev_{k}": v for k, v in retrieval_metrics(self.dev, scores, [10]).items()}

    def export(self, output: Path, weights: dict[str, Tensor], config: Any) -> None:
        """Write a model directory."""
        weights = _to_store(weights, self.cfg, resolve_model(str(self.model)))
        limit = min(config.max_position_embeddings, 32768)
        dims = list(self.cfg.loss.mrl_dims)
        contract = Contract("embedding", self.instruction, self.end_token, limit, config.hidden_size, dims)
        export_embedding(output, weights, config, self.template.tokenizer, contract)


@dataclass
class RerankerTask:
    """Yes / no supervised fine-tuning (paper section 2).

    Attributes:
        cfg: the stage's section of the configuration.
        model: what training starts from, as `resolve_model` takes it: each node fetches it for itself.
        instruction: of the queries, unless `instructions` has one for their dataset.
        dev: validation rows, whose documents are ranked.
        instructions: dataset -> instruction.
        trunk: an embedding model, likewise, whose trunk takes the place of the model's own.
    """

    cfg: TrainRerankerConfig
    model: str | Path
    instruction: str
    dev: Sequence[TrainingRow]
    instructions: Mapping[str, str] = field(default_factory=dict)
    trunk: str | Path | None = None

    def instruction_of(self, row: TrainingRow) -> str:
        """The instruction of a row's query."""
        return self.instructions.get(row.dataset, self.instruction)

    @property
    def batch_size(self) -> int:
        """Queries of a global batch."""
        return self.cfg.queries_per_step

    @property
    def temperature(self) -> float:
        """Temperature of the mixture: 1, so datasets are drawn in proportion to their rows."""
        return 1.0

    def weights(self) -> dict[str, float]:
        """dataset -> its weight in the mixture; empty, since all weigh 1."""
        return {}

    def load(self, dtype: str) -> Any:
        """The causal LM to train, its weights in `dtype`."""
        folder = resolve_model(str(self.model))
        self.template = RerankTemplate(load_tokenizer(folder))
        self.yes_no = self.template.yes_no
        model = load_causal(folder, dtype)
        require_vocabulary(folder, model, self.template.tokenizer)
        if self.trunk is not None:
            replace_trunk(model, resolve_model(str(self.trunk)), dtype)
        return _trainable(model, self.cfg.lora)

    def rows_at(self, step: int, rows: Sequence[TrainingRow]) -> Sequence[TrainingRow]:
        """The rows of the global batch `step`: the same at every step."""
        return rows

    def step(self, engine: StepEngine, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Gradients of the loss of the global batch; its metrics."""
        return reranker_step(engine, self.template, rows, self.cfg, self.instruction_of(rows[0]))

    def validate(self, engine: Any) -> dict[str, float]:
        """Mean reciprocal rank of each dev row's positive among its hard negatives."""
        if not self.dev:
            return {}
        trees: list[Tree] = []
        sizes = []
        for row in self.dev:
            documents = [row.positive, *row.negatives]
            prefix, leaves = rerank_tree(
                self.template,
                row.query,
                documents,
                max_tokens=self.cfg.max_tokens,
                max_query_tokens=self.cfg.max_query_tokens,
                instruction=self.instruction_of(row),
            )
            trees.append((prefix, leaves))
            sizes.append(len(leaves))
        with torch.no_grad():
            scores = _forward_all_ranks(trees, lambda batch: self._margins(engine, batch)).squeeze(1)
        ranks = [1 + int((s[1:] >= s[0]).sum()) for s in torch.split(scores, sizes)]
        return {"dev_mrr": sum(1 / r for r in ranks) / len(ranks)}

    def _margins(self, engine: Any, batch: Any) -> Tensor:
        logits = answer_logits(engine, batch.to(engine.device))
        yes, no = self.yes_no
        margin: Tensor = (logits[:, yes] - logits[:, no]).float()[:, None]
        return margin

    def export(self, output: Path, weights: dict[str, Tensor], config: Any) -> None:
        """Write a model directory."""
        weights = _to_store(weights, self.cfg, resolve_model(str(self.model)))
        limit = min(config.max_position_embeddings, 32768)
        contract = Contract("reranker", self.instruction, "", limit)
        export_reranker(output, weights, config, self.template.tokenizer, contract)
