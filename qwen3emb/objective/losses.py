"""The embedding loss of the paper's section 2 (equation 1), CoSENT for graded pairs, and the reranker's SFT loss.

Tensors in, (loss, metrics) out; no collectives here. The caller passes the *global* batch, see `gather.py`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from qwen3emb.config.training import LossConfig

__all__ = [
    "ContrastiveBatch",
    "LossSums",
    "answer_loss",
    "contrastive_loss",
    "contrastive_rows",
    "cosent_loss",
    "distillation_loss",
    "matryoshka_loss",
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
        rows: rows summed over.
        loss: of -log(e^{s(q,d+)/tau} / Z).
        masked, candidates: negatives left out of Z by a mask, and all of them.
        positive: of the cosines with the positive.
        hardest, ranked: of the highest cosine of an unmasked q-d negative, over the rows that have one.
    """

    rows: float = 0.0
    loss: float = 0.0
    masked: float = 0.0
    candidates: float = 0.0
    positive: float = 0.0
    hardest: float = 0.0
    ranked: float = 0.0

    def __add__(self, other: LossSums) -> LossSums:
        """Field by field."""
        return LossSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """`masked`: share of masked negatives; `positive`, `hardest`: mean cosines."""
        return {
            "masked": self.masked / max(1.0, self.candidates),
            "positive": self.positive / max(1.0, self.rows),
            "hardest": self.hardest / max(1.0, self.ranked),
        }


def contrastive_loss(
    batch: ContrastiveBatch, cfg: LossConfig, explicit_only: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Equation 1: mean over rows of -log(e^{s(q,d+)/tau} / Z), with the five terms of Z and their masks.

    Args:
        batch: vectors already normalised (`ContrastiveBatch.prefix`).
        cfg: temperature, margin and the switches of RECIPE section 2.
        explicit_only: classification rows: Z has only the positive and the row's own hard negatives, since other
            rows of the batch may share the class.

    Returns:
        (scalar loss, `LossSums.metrics`).
    """
    count = len(batch.queries)
    loss, sums = contrastive_rows(batch, slice(0, count), cfg, explicit_only)
    return loss / count, sums.metrics()


def contrastive_rows(
    batch: ContrastiveBatch, rows: slice, cfg: LossConfig, explicit_only: bool = False
) -> tuple[Tensor, LossSums]:
    """The rows `rows` of `contrastive_loss`, summed: a tile of (rows) x (3N + 2M) scores: q-d, q-q and d-d.

    Arguments as of `contrastive_loss`.
    """
    count = len(batch.queries)
    every = torch.arange(count, device=batch.queries.device)
    here = every[rows, None]  # (n, 1)
    queries, positives = batch.queries[rows], batch.positives[rows]
    positive = (queries * positives).sum(dim=1)  # (n,)
    # (n, 1). A negative that scores above this is taken for a false one and masked (paper section 2: margin 0.1).
    # Detached: the mask must not be a way to lower the loss.
    limit = positive.detach()[:, None] + cfg.margin
    documents = torch.cat([batch.positives, batch.negatives])  # (N + M, D)
    document_ids = torch.cat([batch.positive_ids, batch.negative_ids])
    own = torch.cat([every, batch.owner])[None] == here  # (n, N + M): belongs to this row
    # (n, N + M) booleans from here on: which documents are the row's hard negatives, and which are other rows'.
    hard = own & (torch.arange(len(documents), device=every.device) >= count)[None]
    others = _others(own, count, cfg.in_batch_hard) & (not explicit_only)
    same = cfg.mask_identical & _answers(batch, rows, document_ids)

    # (n, N + M) cosines, since the vectors are normalised.
    query_document = queries @ documents.T
    candidate = hard | others
    kept = candidate & ~same & (query_document.detach() <= limit)
    logits, masks, total = [query_document], [kept], candidate.sum()
    if cfg.query_query and not explicit_only:
        # (n, N). Queries are negatives of queries too; an equal text is no negative.
        query_query = queries @ batch.queries.T
        different = here != every[None]
        twin = cfg.mask_identical & (batch.query_ids[rows, None] == batch.query_ids[None])
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
    anchor = positive[:, None] / cfg.temperature
    scores = torch.cat([anchor, everything.masked_fill(~mask, -torch.inf)], dim=1)
    loss = (torch.logsumexp(scores, dim=1) - anchor[:, 0]).sum()
    hardest = query_document.detach().masked_fill(~kept, -torch.inf).amax(dim=1)
    hardest = hardest[torch.isfinite(hardest)]
    figures = (len(positive), loss.detach(), total - mask.sum(), total, positive.detach().sum(), hardest.sum())
    return loss, LossSums(*(float(figure) for figure in (*figures, len(hardest))))


def _answers(batch: ContrastiveBatch, rows: slice, document_ids: Tensor) -> Tensor:
    """(n, documents): the document has the text of a positive of the row's query, its own or another row's."""
    texts, number_of = torch.unique(document_ids, return_inverse=True)
    row, twin = (batch.query_ids[rows, None] == batch.query_ids[None]).nonzero(as_tuple=True)
    # By text first, so that memory stays (rows of the tile) x (documents).
    found = torch.zeros(len(batch.query_ids[rows]), len(texts), dtype=torch.bool, device=texts.device)
    found[row, number_of[: len(batch.queries)][twin]] = True  # the positives come first among the documents
    return found[:, number_of]


def _others(own: Tensor, count: int, in_batch_hard: bool) -> Tensor:
    """(n, N + M): documents of other rows that serve as in-batch negatives."""
    others = ~own
    if not in_batch_hard:
        others[:, count:] = False
    return others


def matryoshka_loss(
    batch: ContrastiveBatch, cfg: LossConfig, explicit_only: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """The contrastive loss on the full vector plus, weighted, on each prefix of `cfg.mrl_dims` (MRL).

    Metrics are those of the full vector.
    """
    loss, metrics = contrastive_loss(batch.prefix(None), cfg, explicit_only)
    for dimensions, weight in prefixes(cfg, batch.queries.shape[1])[1:]:
        loss = loss + weight * contrastive_loss(batch.prefix(dimensions), cfg, explicit_only)[0]
    return loss, metrics


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
    wanted = grades[:, None] > grades[None]
    violations = difference.masked_fill(~wanted, -torch.inf).flatten()
    return torch.logsumexp(torch.cat([violations.new_zeros(1), violations]), dim=0)


def answer_loss(logits: Tensor, labels: Tensor, total: int) -> Tensor:
    """SFT loss at the one answer position: sum of -log p(label) / total (paper section 2, reranking).

    Args:
        logits: (n, vocabulary) at the last input token of each answer, and nowhere else.
        labels: (n,) token ids of "yes" or "no".
        total: answers in the global batch, over all ranks.
    """
    return cross_entropy(logits.float(), labels, reduction="sum") / total


def distillation_loss(margins: Tensor, teacher: Tensor, temperature: float, total: int) -> Tensor:
    """Cross-entropy of the student's yes / no distribution to the teacher's, summed over the answers / total.

    With T the temperature, t the teacher's P(yes), and m the student's logit of yes minus that of no:
    T^2 * H(sigmoid(logit(t) / T), sigmoid(m / T)); T^2 keeps the gradient's size (Hinton et al., arXiv 1503.02531).

    Args:
        margins: (n,) m.
        teacher: (n,) t, from 0 to 1.
        temperature: T.
        total: answers in the global batch, over all ranks.
    """
    wanted = torch.sigmoid(torch.logit(teacher.float(), eps=1e-6) / temperature)
    loss = binary_cross_entropy_with_logits(margins.float() / temperature, wanted, reduction="sum")
    return temperature**2 * loss / total
