"""SLERP of two tensors and the weighted spherical (Karcher) mean of N (paper section 2.3, RECIPE section 4).

For raw vectors w_1..w_N the result is sum_i c_i w_i. The coefficients c_i come from the *directions*
u_i = w_i / |w_i| only, so the whole problem is N x N whatever the size of the tensors:

    N = 2    c = ( sin((1-alpha) theta), sin(alpha theta) ) / sin(theta)
    N > 2    sum_i c_i u_i is the Karcher mean of the u_i: the point m where sum_i weight_i log_m(u_i) = 0

Vectors are read in chunks, in float64; the result is rounded once, to the dtype of the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from qwen3emb.core.errors import UserError
from qwen3emb.merging.report import MergeReport, SlerpReport
from qwen3emb.merging.vectors import InMemory, Vector, chunks, round_once

__all__ = [
    "ANTIPODAL_WITHIN",
    "LERP_BELOW",
    "MergeReport",
    "SlerpReport",
    "merge_vectors",
    "normalise_weights",
    "slerp",
    "spherical_mean",
]

LERP_BELOW = 1e-8
"""Radians. Below this angle SLERP and LERP agree to theta^2/6 < 2e-17, under half an ulp of float64."""

ANTIPODAL_WITHIN = 1e-4
"""Radians. This close to 180 degrees the great circle between two vectors is not defined by the data."""

# The angle between two vectors follows from the length of their difference unless the difference of their lengths is
# nearly all of it: below this share of its square the digits that are left are too few, and directions are subtracted.
_ENOUGH = 1e-2
_BLOCK = 4096  # squares that are summed in one go
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-14


def slerp(
    w1: Tensor, w2: Tensor, alpha: float, *, base: Tensor | None = None, name: str = ""
) -> tuple[Tensor, SlerpReport]:
    """Interpolate on the great circle from w1 (alpha = 0) to w2 (alpha = 1); RECIPE section 4.

    LERP is used below an angle of `LERP_BELOW`, within `ANTIPODAL_WITHIN` of 180 degrees, and where a norm is zero.

    Args:
        w1, w2: tensors of the same float dtype and the same shape, any shape (flattened for the angle).
        alpha: from 0 to 1.
        base: of the same shape; where given, the task vectors w - base are interpolated and base is added back.
        name: of the tensor, for the report and messages.

    Returns:
        (the tensor, in the shape and dtype of w1; its report).

    Raises:
        UserError: alpha is outside [0, 1], shapes or dtypes differ, or a value is NaN or infinite.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha is {alpha}; SLERP needs a number from 0 to 1.")
    return spherical_mean([w1, w2], [1.0 - alpha, alpha], base=base, name=name)


def spherical_mean(
    tensors: Sequence[Tensor], weights: Sequence[float], *, base: Tensor | None = None, name: str = ""
) -> tuple[Tensor, SlerpReport]:
    """Weighted Karcher mean of N >= 1 tensors; for N = 2 exactly `slerp` at alpha = w2 / (w1 + w2).

    LERP is used where `slerp` uses it (for any pair), and where the mean is not unique (the inputs do not fit in a
    hemisphere).

    Args:
        tensors: N tensors of the same shape and float dtype.
        weights: N numbers >= 0, not all zero.
        base: see `slerp`.
        name: of the tensor, for the report and messages.

    Returns:
        (the tensor, in the shape and dtype of the first; its report).

    Raises:
        UserError: shapes or dtypes differ, weights are bad, or a value is NaN or infinite.
    """
    shares = normalise_weights(weights, len(tensors))
    _check_tensors(tensors, base, name)
    merged = torch.empty(tensors[0].numel(), dtype=tensors[0].dtype)

    def keep(start: int, values: Tensor) -> None:
        merged[start : start + len(values)] = values

    origin = None if base is None else InMemory(base)
    row = merge_vectors([InMemory(t) for t in tensors], shares, keep, base=origin, name=name, linear=False)
    return merged.reshape(tensors[0].shape), row


def merge_vectors(
    vectors: Sequence[Vector],
    shares: Sequence[float],
    write: Callable[[int, Tensor], None],
    *,
    base: Vector | None,
    name: str,
    linear: bool,
) -> SlerpReport:
    """The weighted spherical mean, or the linear one, of vectors that are read chunk by chunk, twice.

    Args:
        vectors: of one length and float dtype.
        shares: weights of the vectors, with sum 1.
        write: called with (number of the first element, merged values from there on, in the vectors' dtype); the
            values are valid until it returns.
        base: of the same length, see `slerp`.
        name: of the tensor, for the report and messages.
        linear: whether to take the weighted sum in place of the spherical mean.

    Returns:
        The tensor's report.

    Raises:
        UserError: a value is NaN or infinite.
    """
    # All that SLERP needs of N long vectors are N norms and N x N angles: they are measured while the vectors stream
    # by in chunks, and combined while they stream by once more, so that none need be whole in memory.
    norms, angles = _measure(vectors, base, name)
    coefficients, reason = torch.tensor(shares, dtype=torch.float64), "asked for"
    if not linear:
        coefficients, reason = _coefficients(angles, norms, coefficients)
    values = tuple(coefficients.tolist())
    _combine(vectors, base, values, write)
    # A zero vector has no direction, so its angles say nothing and are not reported.
    directed = angles[norms > 0][:, norms > 0]
    return SlerpReport(
        name=name,
        path="lerp" if reason else "slerp",
        reason=reason,
        angle_degrees=math.degrees(directed.max().item()) if len(directed) > 1 else None,
        coefficients=values,
        excess=0.0 if reason else math.fsum(values) - 1.0,
        numel=vectors[0].numel,
    )


def normalise_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return `count` weights that sum to 1, in proportion to `weights`; None means equal weights.

    Raises:
        UserError: `count` is 0, another number of weights is given, or one is negative or not finite, or all are 0.
    """
    if count < 1:
        raise UserError("There is nothing to merge; name at least one checkpoint.")
    numbers = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(numbers) != count:
        raise UserError(f"{len(numbers)} merge weights are given for {count} checkpoints; give one for each.")
    bad = next((w for w in numbers if not math.isfinite(w) or w < 0), None)
    if bad is not None:
        raise UserError(f"The merge weight {bad} is not a finite number >= 0; change it.")
    total = math.fsum(numbers)
    if not 0 < total < math.inf:
        raise UserError(f"The merge weights {numbers} sum to {total}; they must have a positive, finite sum.")
    return tuple(w / total for w in numbers)


def _check_tensors(tensors: Sequence[Tensor], base: Tensor | None, name: str) -> None:
    first = tensors[0]
    for other in tensors:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            kinds = f"{tuple(first.shape)} {first.dtype} and {tuple(other.shape)} {other.dtype}"
            raise UserError(f"Tensor {name!r} comes as {kinds}; merge checkpoints of one model.")
    if not first.is_floating_point():
        raise UserError(f"Tensor {name!r} is {first.dtype}; only floating-point tensors can be merged.")
    if base is not None and base.shape != first.shape:
        kinds = f"{tuple(first.shape)} in the checkpoints and {tuple(base.shape)} in the base"
        raise UserError(f"Tensor {name!r} is {kinds}; give the base they were trained from.")


def _measure(vectors: Sequence[Vector], base: Vector | None, name: str) -> tuple[Tensor, Tensor]:
    """Return (N,) Euclidean norms and (N, N) angles in radians, in one pass over the vectors where digits allow.

    Angles come from chords |u_i - u_j|, since arccos(dot) has no digits left near 0, and the chords from
    |w_i - w_j|^2 = (|w_i| - |w_j|)^2 + |w_i| |w_j| |u_i - u_j|^2.
    """
    count = len(vectors)
    squares, apart = [0.0] * count, torch.zeros(count, count, dtype=torch.float64)
    for _, rows, _ in chunks(vectors, base):
        for i, row in enumerate(rows):
            squares[i] += _square(row)
        apart += _squared_distances(rows)
    norms = torch.tensor(squares, dtype=torch.float64).sqrt()
    finite = torch.isfinite(norms)
    if not finite.all():
        number = int((~finite).nonzero()[0]) + 1
        where = f"checkpoint number {number}" + ("" if base is None else " or of the base")
        raise UserError(f"Tensor {name!r} of {where} holds NaN or infinity; leave that checkpoint out.")
    scale = torch.where(norms > 0, norms, 1.0)
    # (N, N) above the diagonal: |w_i - w_j|^2 less (|w_i| - |w_j|)^2 is what the directions differ in.
    rest = apart - (norms[:, None] - norms).square().triu(1)
    chords = rest / torch.outer(scale, scale)
    if bool((rest < _ENOUGH * apart).any()):
        chords = torch.zeros_like(apart)
        for _, rows, _ in chunks(vectors, base):
            chords += _squared_distances([row.div_(length) for row, length in zip(rows, scale, strict=True)])
    # chord = 2 sin(angle / 2), hence the arcsine; rounding may lift a chord of opposite vectors above 2.
    chords = (chords + chords.T).sqrt()
    return norms, 2.0 * torch.asin((chords / 2.0).clamp(max=1.0))


def _squared_distances(rows: Sequence[Tensor]) -> Tensor:
    """(N, N) float64, above the diagonal: |row_i - row_j|^2."""
    squares = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, j in combinations(range(len(rows)), 2):
        squares[i, j] = _square(rows[j] - rows[i])
    return squares


def _square(row: Tensor) -> float:
    """|row|^2, block by block: one long sum loses digits that float32 weights show.

    Not torch.dot: its threads, and other processes on the cores, made it a hundred times slower.
    """
    whole = len(row) - len(row) % _BLOCK
    blocks = torch.linalg.vector_norm(row[:whole].view(-1, _BLOCK), dim=1)
    return float(blocks.square().sum()) + float(torch.linalg.vector_norm(row[whole:])) ** 2


def _coefficients(angles: Tensor, norms: Tensor, weights: Tensor) -> tuple[Tensor, str]:
    """Return the (N,) coefficients and the reason for LERP ("" for SLERP)."""
    if bool((norms == 0).any()):
        return weights, "zero norm"
    widest = angles.max().item()
    if widest < LERP_BELOW:
        return weights, "parallel"
    if widest > math.pi - ANTIPODAL_WITHIN:
        return weights, "antipodal"
    if len(weights) == 2:
        # weights = (1 - alpha, alpha)
        # The closed form of two vectors, sin((1-a) theta)/sin theta and sin(a theta)/sin theta; no iteration.
        return torch.sin(weights * widest) / math.sin(widest), ""
    mean = _karcher(torch.cos(angles), weights)
    return (weights, "no unique mean") if mean is None else (mean, "")


def _karcher(gram: Tensor, weights: Tensor) -> Tensor | None:
    """Coefficients c of the Karcher mean m = sum_i c_i u_i, from the Gram matrix of the unit vectors u_i.

    Gradient descent with unit steps: m <- exp_m(sum_i weight_i log_m(u_i)), written in the coefficients.
    Returns None where it does not converge: the points do not fit in a hemisphere around their mean.
    """
    # |sum_i weight_i u_i|^2, since <u_i, u_j> = gram_ij. Near zero the weighted directions cancel, and no mean is
    # preferred.
    resultant = (weights @ gram @ weights).item()
    if resultant < ANTIPODAL_WITHIN**2:
        return None
    # c (N,): the start is the normalised linear mean. All that follows happens in these N numbers: |x|^2 = c^T G c
    # and <x, y> = c^T G d are exact, so vectors of a billion entries cost N x N.
    mean = weights / math.sqrt(resultant)
    for _ in range(_MAX_ITERATIONS):
        # (N,) cosines and angles between m and each u_i; rounding may lift a cosine above 1, where arccos has no
        # value.
        cosines = (gram @ mean).clamp(-1.0, 1.0)
        phi = torch.acos(cosines)
        if phi[weights > 0].max() > math.pi - ANTIPODAL_WITHIN:
            return None
        # log_m(u_i) = phi_i / sin(phi_i) * (u_i - cos(phi_i) m); torch.sinc(x) = sin(pi x) / (pi x)
        pulls = torch.where(weights > 0, weights / torch.sinc(phi / math.pi), 0.0)
        # sum_i weight_i log_m(u_i), in coefficients of the u_i (first term) and of m (second): the direction of
        # steepest descent of the summed squared angles. sinc is 1 at angle 0, where phi / sin(phi) would divide 0 by
        # 0.
        tangent = pulls - (pulls @ cosines) * mean
        length = (tangent @ gram @ tangent).clamp(min=0.0).sqrt()
        # exp_m(t) = cos|t| m + sin|t| t / |t|: walk along the great circle. Then back to length 1, which rounding
        # leaves slowly.
        mean = torch.cos(length) * mean + torch.sinc(length / math.pi) * tangent
        mean = mean / (mean @ gram @ mean).sqrt()
        # rounding in `cosines` is eps |c|, and comes back multiplied with c
        if tangent.abs().max() < _TOLERANCE * mean.abs().max().clamp(min=1.0) ** 2:
            return mean
    return None


def _combine(
    vectors: Sequence[Vector], base: Vector | None, coefficients: Sequence[float], write: Callable[[int, Tensor], None]
) -> None:
    """sum_i c_i w_i (plus the base), summed in float64 and rounded once."""
    for start, rows, origin in chunks(vectors, base):
        # In place: `rows` are float64 copies of this chunk that nobody else reads.
        total = rows[0].mul_(coefficients[0])
        for row, coefficient in zip(rows[1:], coefficients[1:], strict=True):
            total += row.mul_(coefficient)
        if origin is not None:
            total += origin
        write(start, round_once(total, vectors[0].dtype))
