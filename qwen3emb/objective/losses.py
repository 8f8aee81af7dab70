"""The embedding loss of the paper's section 2 (equation 1) and CoSENT, with their gradients for a global batch.

`contrastive_rows` is the formula for some rows of the score matrix. `contrastive_gradients` goes over all of them in
tiles that the ranks share: the middle of a gradient-cache step, where vectors come in without their graph and gradients
go out. Memory grows with (tile) x (batch), never with (batch)^2; each rank computes every W-th tile, and the sums are
reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from qwen3emb.config.training import LossConfig
from qwen3emb.objective.additions import log_hardness, mean_squares
from qwen3emb.objective.distillation import Teacher, teacher_loss
from qwen3emb.objective.ranks import rank_and_world

__all__ = [
    "ContrastiveBatch",
    "LossSums",
    "contrastive_gradients",
    "contrastive_rows",
    "cosent_gradients",
    "cosent_loss",
    "prefixes",
]


@dataclass(frozen=True)
class ContrastiveBatch:
    """A global batch of N queries, their positives, and M hard negatives.

    Attributes:
        queries: (N, D) pooled vectors, normalised or not.
        positives: (N, D).
        negatives: (M, D); M may be 0.
        owner: (M,) row whose hard negative this is.
        query_ids: (N,) content hashes; equal texts have equal ids.
        positive_ids: (N,) content hashes of the positives.
        negative_ids: (M,) content hashes of the negatives.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    owner: Tensor
    query_ids: Tensor
    positive_ids: Tensor
    negative_ids: Tensor

    def prefix(self, dimensions: int | None) -> ContrastiveBatch:
        """The same batch with vectors cut to `dimensions` and normalised."""
        q, p, n = (normalize(t[:, :dimensions].float(), dim=-1) for t in (self.queries, self.positives, self.negatives))
        return ContrastiveBatch(q, p, n, self.owner, self.query_ids, self.positive_ids, self.negative_ids)


@dataclass
class LossSums:
    """Sums over the rows of a batch, which add up over tiles and ranks.

    Attributes:
        rows: number of rows.
        loss: sum of -log(e^{s(q,d+)/tau} / Z), with a teacher of its share too, and of the spread-out term where the
            configuration has one.
        masked, candidates: number of negatives that a mask keeps out of Z, and of all negatives.
        positive: sum of the cosines of queries and their positives.
        hardest, ranked: sum of each row's highest cosine with an unmasked q-d negative, and number of rows with one.
        teacher, taught: sum of the divergences from the teacher, and number of rows that it teaches.
    """

    rows: float = 0.0
    loss: float = 0.0
    masked: float = 0.0
    candidates: float = 0.0
    positive: float = 0.0
    hardest: float = 0.0
    ranked: float = 0.0
    teacher: float = 0.0
    taught: float = 0.0

    def __add__(self, other: LossSums) -> LossSums:
        """Field by field."""
        return LossSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """`masked`: share of masked negatives; `positive`, `hardest`: mean cosines, see the attributes; with a
        teacher also `teacher`: mean divergence from it."""
        taught = {"teacher": self.teacher / self.taught} if self.taught else {}
        return {
            "masked": self.masked / max(1.0, self.candidates),
            "positive": self.positive / max(1.0, self.rows),
            "hardest": self.hardest / max(1.0, self.ranked),
            **taught,
        }


def contrastive_rows(
    batch: ContrastiveBatch,
    rows: slice,
    cfg: LossConfig,
    explicit_only: bool = False,
    teacher: Teacher | None = None,
) -> tuple[Tensor, LossSums]:
    """Equation 1 for the rows `rows`: the sum of -log(e^{s(q,d+)/tau} / Z), with the five terms of Z and their masks.

    It is a tile of (rows) x (3N + 2M) scores: q-d, q-q and d-d. `cfg.hardness` and `cfg.spread_out` add what is in
    `additions`, the latter not for classification rows, of which many are to be alike.

    Args:
        batch: vectors already normalised (`ContrastiveBatch.prefix`).
        rows: the rows to compute, n of them.
        cfg: temperature, margin and the switches of RECIPE section 2.
        explicit_only: for classification rows: Z has only the positive and the row's own hard negatives, since other
            rows of the batch may share the class.
        teacher: of weight w makes a row's loss (1 - w) x that + w x `teacher_loss`, where it teaches the row something.

    Returns:
        (scalar sum of the losses, with its graph; sums for the metrics).
    """
    count = len(batch.queries)
    every = torch.arange(count, device=batch.queries.device)
    row_numbers = every[rows, None]  # (n, 1)
    queries, positives = batch.queries[rows], batch.positives[rows]
    positive = (queries * positives).sum(dim=1)  # (n,)
    # (n, 1). A negative that scores above this is taken for a false one and masked (paper section 2: margin 0.1).
    # Detached: the mask must not be a way to lower the loss.
    limit = positive.detach()[:, None] + cfg.margin
    documents = torch.cat([batch.positives, batch.negatives])  # (N + M, D)
    document_ids = torch.cat([batch.positive_ids, batch.negative_ids])
    of_row = torch.cat([every, batch.owner])[None] == row_numbers  # (n, N + M): belongs to this row
    # (n, N + M) booleans from here on: which documents are the row's hard negatives, and which are other rows'.
    hard = of_row & (torch.arange(len(documents), device=every.device) >= count)[None]
    others = _others(of_row, count, cfg.in_batch_hard) & (not explicit_only)
    same = cfg.mask_identical & _answers(batch, rows, document_ids)

    # (n, N + M) cosines, since the vectors are normalised.
    query_document = queries @ documents.T
    candidate = hard | others
    kept = candidate & ~same & (query_document.detach() <= limit)
    logits, masks, total = [query_document], [kept], candidate.sum()
    # (n, N)
    different = row_numbers != every[None]
    twin = cfg.mask_identical & (batch.query_ids[rows, None] == batch.query_ids[None])
    if cfg.query_query and not explicit_only:
        # (n, N). Queries are negatives of queries too; an equal text is no negative.
        query_query = queries @ batch.queries.T
        logits.append(query_query)
        masks.append(different & ~twin & (query_query.detach() <= limit))
        total = total + different.sum()
    if cfg.document_document and not explicit_only:
        # (n, N + M): the row's positive against the documents of other rows.
        logits.append(positives @ documents.T)
        masks.append(others & ~same)
        total = total + others.sum()

    # One log-sum-exp over all terms of Z, the positive's first: -log(e^{s+} / Z) = logsumexp(all) - s+. Masked terms
    # are -inf and add nothing; the positive is never masked, so that no row is empty.
    everything, mask = torch.cat(logits, dim=1) / cfg.temperature, torch.cat(masks, dim=1)
    if cfg.hardness:
        everything = everything + log_hardness(torch.cat(logits, dim=1), mask, cfg.hardness)
    anchor = positive[:, None] / cfg.temperature
    scores = torch.cat([anchor, everything.masked_fill(~mask, -torch.inf)], dim=1)
    losses = torch.logsumexp(scores, dim=1) - anchor[:, 0]
    learnt: list[Tensor] = []
    if teacher is not None:
        divergences, taught = teacher_loss(teacher.targets(every[rows]), query_document, cfg.temperature)
        share = teacher.weight * taught
        losses = (1 - share) * losses + share * divergences
        learnt = [divergences.detach().sum(), taught.sum()]
    loss = losses.sum()
    if cfg.spread_out and not explicit_only:
        spread = mean_squares(queries, batch.queries, different & ~twin)
        spread = spread + mean_squares(positives, batch.positives, different & ~same[:, :count])
        loss = loss + cfg.spread_out * spread
    hardest = query_document.detach().masked_fill(~kept, -torch.inf).amax(dim=1)
    hardest = hardest[torch.isfinite(hardest)]
    figures = (len(positive), loss.detach(), total - mask.sum(), total, positive.detach().sum(), hardest.sum())
    return loss, LossSums(*(float(figure) for figure in (*figures, len(hardest))), *map(float, learnt))


def _answers(batch: ContrastiveBatch, rows: slice, document_ids: Tensor) -> Tensor:
    """(n, documents) boolean: the document's text is a positive of the row's query, in this row or in another one."""
    texts, number_of = torch.unique(document_ids, return_inverse=True)
    row, twin = (batch.query_ids[rows, None] == batch.query_ids[None]).nonzero(as_tuple=True)
    # By text first, so that memory stays (rows of the tile) x (documents).
    by_text = torch.zeros(len(batch.query_ids[rows]), len(texts), dtype=torch.bool, device=texts.device)
    by_text[row, number_of[: len(batch.queries)][twin]] = True  # the positives come first among the documents
    return by_text[:, number_of]


def _others(of_row: Tensor, count: int, in_batch_hard: bool) -> Tensor:
    """(n, N + M) boolean: documents of other rows that serve as in-batch negatives."""
    others = ~of_row
    if not in_batch_hard:
        others[:, count:] = False
    return others


def prefixes(cfg: LossConfig, width: int) -> list[tuple[int, float]]:
    """(dimensions, weight) of each vector prefix that the loss is summed over, the full vector of `width` first."""
    weights = cfg.mrl_weights or [1.0] * len(cfg.mrl_dims)
    return [(width, 1.0), *((d, w) for d, w in zip(cfg.mrl_dims, weights, strict=True) if d < width)]


def cosent_loss(first: Tensor, second: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """CoSENT for graded STS rows: log(1 + sum over pairs with grade_a > grade_b of e^{(s_b - s_a)/tau}).

    Args:
        first, second: (N, D) normalised vectors of the two sentences.
        grades: (N,) human scores; only their order matters.
        temperature: tau.
    """
    cosine = (first * second).sum(dim=1) / temperature
    # (N, N). A pair that the grades order one way and the cosines the other costs; the 0 put in front of the
    # log-sum-exp is the 1 of log(1 + ...).
    difference = cosine[None] - cosine[:, None]  # [a, b] = s_b - s_a
    graded_higher = grades[:, None] > grades[None]
    violations = difference.masked_fill(~graded_higher, -torch.inf).flatten()
    return torch.logsumexp(torch.cat([violations.new_zeros(1), violations]), dim=0)


Gradients = tuple[Tensor, Tensor, Tensor]
"""With respect to queries (N, D), positives (N, D) and negatives (M, D)."""


@torch.enable_grad()  # callers that want the loss alone run under no_grad
def contrastive_gradients(
    batch: ContrastiveBatch,
    cfg: LossConfig,
    *,
    explicit_only: bool = False,
    tile: int = 256,
    teacher: Teacher | None = None,
) -> tuple[float, Gradients, dict[str, float]]:
    """Mean loss of all rows on the full vector plus, weighted, on each prefix of `cfg.mrl_dims` (MRL), with gradients.

    All results are the same on every rank. Metrics are those of the full vector.

    Args:
        batch: the global batch, the same on every rank; vectors need not be normalised.
        cfg: the loss.
        explicit_only, teacher: as of `contrastive_rows`.
        tile: rows of the score matrix at a time.

    Returns:
        (loss, gradients with respect to queries, positives and negatives, `LossSums.metrics`).
    """
    rank, world = rank_and_world()
    count, width = batch.queries.shape
    # Every rank has the whole batch; rank r computes the score rows of tiles r, r + W, ... and no others. Tiles are
    # made small enough that each rank gets one.
    tile = max(1, min(tile, -(-count // world)))
    starts = range(0, count, tile)[rank::world]
    # (N, D), (N, D), (M, D). Gradients add up over the MRL prefixes and the tiles, in float32 whatever the model has.
    raw = [batch.queries, batch.positives, batch.negatives]
    gradients = [torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in raw]
    loss = 0.0
    metrics: dict[str, float] = {}
    for dimensions, weight in prefixes(cfg, width):
        # Two graphs with a cut between them: leaf -> unit (normalising, whole batch) and cut -> loss (per tile). The
        # graph of a tile, (tile) x (3N + 2M) scores, is freed as soon as its gradient lies in cut.grad; normalising,
        # which all tiles share, is walked back once at the end.
        leaves = [t[:, :dimensions].detach().float().requires_grad_() for t in raw]
        units = [normalize(leaf, dim=-1) for leaf in leaves]
        cut = [unit.detach().requires_grad_() for unit in units]
        prefix_batch = replace(batch, queries=cut[0], positives=cut[1], negatives=cut[2])
        sums = LossSums()
        for start in starts:
            part, tile_sums = contrastive_rows(prefix_batch, slice(start, start + tile), cfg, explicit_only, teacher)
            # Divided by N of the global batch here: tiles and ranks are then summed, never averaged.
            torch.autograd.backward(part * (weight / count))
            sums = sums + tile_sums
        for total, leaf, unit, used in zip(gradients, leaves, units, cut, strict=True):
            if used.grad is not None:
                # Through the normalisation: only what is orthogonal to a vector is left of its gradient.
                torch.autograd.backward(unit, used.grad)
                assert leaf.grad is not None
                # A prefix loss moves the first `dimensions` columns only.
                total[:, :dimensions] += leaf.grad
        sums = LossSums(*_summed([torch.tensor(astuple(sums), dtype=torch.float64)])[0].tolist())
        loss += weight * sums.loss / count
        metrics = metrics or sums.metrics()
    queries, positives, negatives = _summed(gradients)
    return loss, (queries, positives, negatives), metrics


@torch.enable_grad()
def cosent_gradients(
    batch: ContrastiveBatch, grades: Tensor, cfg: LossConfig
) -> tuple[float, Gradients, dict[str, float]]:
    """Value, gradients and metrics of CoSENT over graded pairs, on the full vector and each MRL prefix.

    Args:
        batch: `queries` and `positives` are the two sentences of each pair; negatives are not used.
        grades: (N,) human scores.
        cfg: temperature and prefixes.

    Returns:
        (loss, gradients with respect to queries, positives and, zero, negatives; metrics as of `LossSums.metrics`).
    """
    leaves = [t.detach().float().requires_grad_() for t in (batch.queries, batch.positives)]
    total = torch.zeros((), device=grades.device)
    positive = 0.0
    for dimensions, weight in prefixes(cfg, batch.queries.shape[1]):
        first, second = (normalize(leaf[:, :dimensions], dim=-1) for leaf in leaves)
        total = total + weight * cosent_loss(first, second, grades, cfg.temperature)
        positive = positive or float((first * second).detach().sum(dim=1).mean())
    torch.autograd.backward(total)
    queries, positives = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
    figures = {"masked": 0.0, "positive": positive, "hardest": 0.0}
    return float(total.detach()), (queries, positives, torch.zeros_like(batch.negatives)), figures


def _summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over the ranks, in one exchange."""
    if rank_and_world()[1] == 1:
        return list(tensors)
    device = tensors[0].device
    # One exchange instead of one per tensor: what counts with small tensors is the number of round trips.
    flat = torch.cat([t.flatten() for t in tensors])
    # NCCL reduces CUDA tensors only; the float64 sums of the metrics are made on the CPU.
    flat = flat.cuda() if dist.get_backend() == "nccl" and device.type == "cpu" else flat
    dist.all_reduce(flat)
    parts = torch.split(flat.to(device), [t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
