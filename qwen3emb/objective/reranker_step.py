"""One reranker step: one tree per query, logits only at the answer position, micro-batches by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from qwen3emb.config.training import TrainRerankerConfig
from qwen3emb.model.packing import PackedBatch, Tree, budgeted, pack
from qwen3emb.model.reranker import answer_logits, rerank_tree
from qwen3emb.objective.allocator import between_passes
from qwen3emb.objective.microbatch import StepEngine, most_rounds, wasted_share
from qwen3emb.objective.ranks import balance, gather_rows, rank_and_world
from qwen3emb.objective.rows import TrainingRow, without_own_positives
from qwen3emb.text.templates import RerankTemplate

__all__ = ["answer_loss", "distillation_loss", "group_loss", "reranker_step"]


@dataclass(frozen=True)
class _MicroBatch:
    """Packed trees and, for each of their leaves, whether it answers its query, and the teacher's logit of P(yes)."""

    packed: PackedBatch
    answers: list[bool]
    teacher: list[float]


def reranker_step(
    engine: StepEngine,
    template: RerankTemplate,
    rows: Sequence[TrainingRow],
    cfg: TrainRerankerConfig,
    instruction: str,
) -> dict[str, float]:
    """Add the gradient of the loss of the global batch `rows` to the engine's parameters.

    The loss is `cfg.loss`: `answer_loss` (the paper's SFT, section 2), `group_loss`, or their sum. With `cfg.teacher`
    of weight w it is (1 - w) x that + w x `distillation_loss`, from the same logits.

    A query is scored against the documents of its row only. A negative that is a positive of the same query in any row
    of the batch is left out, as in the embedding loss (`without_own_positives`).

    Every rank calls this with the same rows and computes its share of the queries.

    Args:
        engine: causal LM with packed attention.
        template: the reranker's format.
        rows: queries, each with its positive and all negatives to train against.
        cfg: the loss, lengths, token budget, teacher.
        instruction: of the queries.

    Returns:
        Over all ranks "loss", "positive" (mean P(yes) of positives) and "hardest" (mean over the queries of the highest
        P(yes) of a negative); of this rank "tokens", "micro_batches" and "padding" (see `wasted_share`).
    """
    rank, world = rank_and_world()
    rows = without_own_positives(rows)
    # Whole queries go to ranks, balanced by characters: the prefix of a query must be computed where its documents
    # are.
    lengths = [len(r.query) + sum(map(len, (r.positive, *r.negatives))) for r in rows]
    mine = [rows[i] for i in balance(lengths, world)[rank]]
    # Means over all documents, and over all queries, of the global batch: each micro-batch divides by these numbers,
    # then sums add up over micro-batches and ranks to exactly those means.
    answers = sum(1 + len(row.negatives) for row in rows)
    batches = _micro_batches(mine, template, cfg, instruction)
    rounds = most_rounds(len(batches), engine.device)
    sums = torch.zeros(4, dtype=torch.float64)
    for n in range(rounds):
        between_passes(n, engine.device.type)
        # A rank without (more) queries runs a forward and a backward of zero: both are collective under ZeRO-3.
        used = n < len(batches) and bool(mine)
        loss, batch_sums = _answers(engine, template, batches[min(n, len(batches) - 1)], answers, len(rows), cfg)
        engine.backward(loss if used else loss * 0, n + 1 == rounds)
        sums += batch_sums if used else 0
    loss_sum, positive, hardest, ranked = gather_rows(sums[None].to(engine.device)).sum(dim=0).tolist()
    tokens = sum(batch.packed.tokens for batch in batches) if mine else 0
    return {
        "loss": loss_sum,
        "tokens": float(tokens),
        "micro_batches": float(len(batches)),
        "padding": wasted_share(int(tokens), [batch.packed for batch in batches], rounds),
        "positive": positive / len(rows),
        "hardest": hardest / max(1.0, ranked),
    }


def _micro_batches(
    rows: Sequence[TrainingRow], template: RerankTemplate, cfg: TrainRerankerConfig, instruction: str
) -> list[_MicroBatch]:
    """Pack trees by token budget, each whole, so that a prefix is computed once; at least one micro-batch."""
    trees: list[Tree] = [
        rerank_tree(
            template,
            row.query,
            [row.positive, *row.negatives],
            max_tokens=cfg.max_tokens,
            max_query_tokens=cfg.max_query_tokens,
            instruction=instruction,
        )
        for row in rows
    ]
    sizes = [len(prefix) + sum(map(len, leaves)) for prefix, leaves in trees]
    batches = []
    for group in budgeted(sizes, min(cfg.pack_tokens, cfg.token_budget)):
        # The first leaf of a tree is the positive, "yes"; all others are "no".
        answers = [n == 0 for i in group for n in range(len(trees[i][1]))]
        teacher = [score for i in group for score in rows[i].teacher[: len(trees[i][1])]]
        batches.append(_MicroBatch(pack([trees[i] for i in group]), answers, teacher))
    return batches or [_MicroBatch(pack([([], [[template.yes_no[0]]])]), [True], [0.0])]


def _answers(
    engine: StepEngine,
    template: RerankTemplate,
    batch: _MicroBatch,
    answers: int,
    queries: int,
    cfg: TrainRerankerConfig,
) -> tuple[Tensor, Tensor]:
    """(share of the micro-batch in the loss of a global batch of so many answers and queries,
    [that share, sum of P(yes) of positives, of hardest negatives, their count])."""
    yes, no = template.yes_no
    packed = batch.packed.to(engine.device)
    labels = torch.tensor([yes if answer else no for answer in batch.answers], device=engine.device)
    # (leaves, vocabulary) at the answer's place only; SFT is cross entropy there over the whole vocabulary.
    logits = answer_logits(engine, packed)
    # The score that is served: sigmoid of this margin.
    margins = logits[:, yes] - logits[:, no]
    # A positive opens its query's leaves; what follows up to the next positive are its negatives.
    starts = [i for i, answer in enumerate(batch.answers) if answer]
    ends = [*starts[1:], len(batch.answers)]
    loss = margins.new_zeros((), dtype=torch.float32)
    if cfg.loss in ("sft", "both"):
        loss = loss + answer_loss(logits, labels, answers)
    if cfg.loss in ("group", "both"):
        loss = loss + group_loss(margins, [b - a for a, b in zip(starts, ends, strict=True)], queries)
    if cfg.teacher:
        wanted = torch.tensor(batch.teacher, device=engine.device)
        distilled = distillation_loss(margins, wanted, cfg.teacher.temperature, answers)
        loss = (1 - cfg.teacher.weight) * loss + cfg.teacher.weight * distilled
    chance = torch.sigmoid(margins.detach().float()).tolist()
    hardest = [max(chance[a + 1 : b]) for a, b in zip(starts, ends, strict=True) if b > a + 1]
    figures = [float(loss.detach()), sum(chance[i] for i in starts), sum(hardest), float(len(hardest))]
    return loss, torch.tensor(figures, dtype=torch.float64)


def answer_loss(logits: Tensor, labels: Tensor, total: int) -> Tensor:
    """SFT loss at the one answer position: sum of -log p(label) / total (paper section 2, reranking).

    Args:
        logits: (n, vocabulary) at the last input token of each answer, and nowhere else.
        labels: (n,) token ids of "yes" or "no".
        total: answers in the global batch, over all ranks.
    """
    return cross_entropy(logits.float(), labels, reduction="sum") / total


def group_loss(margins: Tensor, sizes: Sequence[int], total: int) -> Tensor:
    """Cross-entropy of each query's documents, its positive the right one: sum of -log softmax(m)[positive] / total.

    m are logits of yes minus those of no, so the order that is learnt is that of the served scores, sigmoid(m). Adding
    a number to all m of a query changes nothing: alone, this loss says nothing of their size. (Localized contrastive
    estimation, arXiv 2101.08751, equation 5.)

    Args:
        margins: (n,) m, query by query, the positive of each first.
        sizes: documents of each query; they sum to n.
        total: queries in the global batch, over all ranks.
    """
    # (queries, longest): a query with fewer documents is filled with -inf, which softmax gives nothing.
    rows = torch.nn.utils.rnn.pad_sequence(
        list(torch.split(margins.float(), list(sizes))), batch_first=True, padding_value=-torch.inf
    )
    return (torch.logsumexp(rows, dim=1) - rows[:, 0]).sum() / total


def distillation_loss(margins: Tensor, teacher: Tensor, temperature: float, total: int) -> Tensor:
    """Cross-entropy of the student's yes / no distribution to the teacher's, summed over the answers / total.

    With T the temperature, t the teacher's logit of P(yes), and m the student's logit of yes minus that of no:
    T^2 * H(sigmoid(t / T), sigmoid(m / T)); T^2 keeps the gradient's size (Hinton et al., arXiv 1503.02531).

    Args:
        margins: (n,) m.
        teacher: (n,) t.
        temperature: T.
        total: answers in the global batch, over all ranks.
    """
    target = torch.sigmoid(teacher.float() / temperature)
    loss = binary_cross_entropy_with_logits(margins.float() / temperature, target, reduction="sum")
    return temperature**2 * loss / total
