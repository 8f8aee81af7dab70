"""What the contrastive loss may have besides the paper's terms, off by default: weights of negatives, spreading out."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["log_hardness", "mean_squares"]


def log_hardness(cosines: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Logarithms of the weights of hard negative sampling: w = e^{beta s} / mean of e^{beta s} over the row's terms.

    Robinson et al. (arXiv 2010.04592), without their correction for false negatives, which the mask of equation 1 takes
    out; their beta is ours x tau, since they write it before s / tau. The mean weight of a row is 1, so Z stays of its
    size. The weights are detached, as in LLaVE (arXiv 2503.04812) and EmbeddingGemma (arXiv 2509.20354), which weigh by
    e^{alpha s} without dividing.

    Args:
        cosines: (n, terms) s of each negative term.
        mask: (n, terms) True where the term counts.
        beta: at 0 all weights are 1.

    Returns:
        (n, terms) log w, detached; of no meaning where `mask` is False.
    """
    exponents = beta * cosines.detach()
    total = torch.logsumexp(exponents.masked_fill(~mask, -torch.inf), dim=1, keepdim=True)
    return exponents - total + mask.sum(dim=1, keepdim=True, dtype=exponents.dtype).log()


def mean_squares(some: Tensor, vectors: Tensor, different: Tensor) -> Tensor:
    """The spread-out term of `some`: the sum over its rows of the mean squared cosine with the `different` vectors.

    Vectors that lie evenly on the sphere of d dimensions have a mean of 1 / d. It is the second moment of global
    orthogonal regularisation (arXiv 1708.06320), alone and without its threshold 1 / d, as in EmbeddingGemma (arXiv
    2509.20354); the square of the mean cosine, their other part, is never more than it.

    Args:
        some: (n, D) normalised.
        vectors: (N, D) normalised.
        different: (n, N) True where the two are of different texts; a row without any adds 0.
    """
    squares = (some @ vectors.T).square().masked_fill(~different, 0.0)
    return (squares.sum(dim=1) / different.sum(dim=1).clamp(min=1)).sum()
