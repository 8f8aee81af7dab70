"""The weights of a linear merge, found by the loss on rows of the dev set (`merge.method`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qwen3emb.config.datasets import DOCSTRINGS
from qwen3emb.config.merging import MergeConfig
from qwen3emb.config.run import RunConfig
from qwen3emb.core.context import StageContext
from qwen3emb.core.cores import usable_cores
from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.merging.candidates import Probed
from qwen3emb.merging.positions import Interpolation, cocktail_weights, self_position
from qwen3emb.model.loading import load_tokenizer, load_trunk, stored_dtype
from qwen3emb.model.stored import checkpoint_label
from qwen3emb.objective.embedding_step import StepSettings, embedding_step
from qwen3emb.objective.microbatch import PlainEngine
from qwen3emb.objective.rows import TrainingRow
from qwen3emb.text.evaluation_sets import first_set
from qwen3emb.text.instructions import instructions
from qwen3emb.text.templates import EmbeddingTemplate, TextLimits

__all__ = ["Probe", "loss_probe", "probe_rows", "probed_weights"]


@dataclass(frozen=True)
class Probe:
    """Input of `probed_weights`: the checkpoints as URIs, and the rows and settings to compute their loss with."""

    checkpoints: list[str]
    end_token: str
    rows: list[TrainingRow]
    settings: StepSettings
    cfg: MergeConfig
    gpus: int


class _LossOnly(PlainEngine):
    """A module whose loss is computed without gradients."""

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Do nothing."""


def loss_probe(ctx: StageContext[RunConfig], method: Probed, checkpoints: Sequence[str]) -> Probe:
    """The `Probe` of the stage `merge`.

    Args:
        ctx: the stage `merge`.
        method: by which the weights are found.
        checkpoints: URIs of embedding models.

    Raises:
        UserError: the run has no dev set.
    """
    cfg, train, rows = ctx.cfg, ctx.cfg.supervised, probe_rows(ctx)
    dev = first_set(ctx.inputs, "dev")
    dataset = dev.name if dev else DOCSTRINGS
    settings = StepSettings(
        instruction=instructions(cfg, [dataset])[dataset],
        task="retrieval",
        hard_negatives=0,
        limits=TextLimits.of(train),
        loss=train.loss,
        token_budget=train.token_budget,
        tile=train.loss_tile,
        pack_tokens=train.pack_tokens,
    )
    merge = cfg.merge.model_copy(update={"method": method})
    gpus = cfg.cluster.gpus_per_worker
    return Probe(list(checkpoints), cfg.models.end_token, rows, settings, merge, gpus)


def probe_rows(ctx: StageContext[RunConfig]) -> list[TrainingRow]:
    """`merge.probe_rows` queries of the dev set, drawn with the run's seed, each with its best document.

    Raises:
        UserError: the run has no dev set, or one with fewer than two queries.
    """
    dev = first_set(ctx.inputs, "dev")
    if dev is None or dev.size < 2:
        raise UserError(f"merge.method {ctx.cfg.merge.method}: the run has no dev queries; raise corpus.dev_share")
    data = dev.read()
    texts = dict(zip(data.corpus, data.texts(), strict=True))
    best = {query: max((grade, document) for document, grade in data.qrels[query].items()) for query in data.queries}
    rows = [TrainingRow(query, data.queries[query], texts[document]) for query, (_, document) in sorted(best.items())]
    random.Random(ctx.cfg.seed).shuffle(rows)
    return rows[: ctx.cfg.merge.probe_rows]


def probed_weights(probe: Probe) -> tuple[list[float], list[str]]:
    """Compute the weights of a linear merge by `merge.method`, cocktail or self_position.

    Returns:
        (one weight per checkpoint, lines of progress).
    """
    torch.set_num_threads(usable_cores())
    folders = [Path(Storage(uri).local()) for uri in probe.checkpoints]
    device = "cuda" if probe.gpus else "cpu"
    template = EmbeddingTemplate(load_tokenizer(folders[0]), probe.end_token)

    def loaded(folder: Path) -> Any:
        return load_trunk(folder, stored_dtype(folder)).to(device)

    lines: list[str] = []
    if probe.cfg.method == "self_position":
        module = loaded(folders[0]).train()

        def loss() -> float:
            return embedding_step(PlainEngine(module), template, probe.rows, probe.settings)["loss"]

        space = Interpolation(module, folders)
        return self_position(space, loss, probe.cfg.probe_steps, probe.cfg.probe_lr, lines.append), lines
    losses = []
    for uri, folder in zip(probe.checkpoints, folders, strict=True):
        keep_all = replace(probe.settings, token_budget=1 << 60)  # without graphs there is nothing to keep
        with torch.no_grad():
            losses.append(embedding_step(_LossOnly(loaded(folder)), template, probe.rows, keep_all)["loss"])
        lines.append(f"{checkpoint_label(uri)}: loss {losses[-1]:.4f} on {len(probe.rows)} dev rows")
    return cocktail_weights(losses, probe.cfg.temperature), lines
