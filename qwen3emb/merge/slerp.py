"""SLERP of two tensors and the weighted spherical (Karcher) mean of N (paper section 2.3, RECIPE section 4).

For raw vectors w_1..w_N the result is sum_i c_i w_i. The coefficients c_i come from the *directions*
u_i = w_i / |w_i| only, so the whole problem is N x N whatever the size of the tensors:

    N = 2    c = ( sin((1-alpha) theta), sin(alpha theta) ) / sin(theta)
    N > 2    sum_i c_i u_i is the Karcher mean of the u_i: the point m where sum_i weight_i log_m(u_i) = 0

Tensors are read in chunks, in float64; the result is rounded once, to the dtype of the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qwen3emb.errors import UserError
from qwen3emb.merge.report import MergeReport, SlerpReport

__all__ = [
    "ANTIPODAL_WITHIN",
    "LERP_BELOW",
    "MergeReport",
    "SlerpReport",
    "linear_mean",
    "normalise_weights",
    "slerp",
    "spherical_mean",
]

LERP_BELOW = 1e-8
"""Radians. Below this angle SLERP and LERP agree to theta^2/6 < 2e-17, under half an ulp of float64."""

ANTIPODAL_WITHIN = 1e-4
"""Radians. This close to 180 degrees the great circle between two vectors is not defined by the data."""

# Elements of the N float64 chunks together: they stay in cache, and torch runs an operation of this size
# on one thread. With larger ones, and other processes on the cores, its thread barriers took 30 times longer.
_CHUNK = 1 << 15
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-14


def slerp(
    w1: Tensor, w2: Tensor, alpha: float, *, base: Tensor | None = None, name: str = ""
) -> tuple[Tensor, SlerpReport]:
    """Interpolate on the great circle from w1 (alpha = 0) to w2 (alpha = 1); RECIPE section 4.

    w1, w2: same shape and float dtype, any shape (flattened for the angle). base: where given, the task
    vectors w - base are interpolated and base is added back. Returns the tensor in the shape and dtype
    of w1, and its report. LERP is used below `LERP_BELOW`, within `ANTIPODAL_WITHIN` of 180 degrees, and
    where a norm is zero. Raises UserError for alpha outside [0, 1], unequal shapes or dtypes, and NaN.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha is {alpha}; SLERP needs a number from 0 to 1.")
    return spherical_mean([w1, w2], [1.0 - alpha, alpha], base=base, name=name)


def spherical_mean(
    tensors: Sequence[Tensor], weights: Sequence[float], *, base: Tensor | None = None, name: str = ""
) -> tuple[Tensor, SlerpReport]:
    """Weighted Karcher mean of N >= 1 tensors; for N = 2 exactly `slerp` at alpha = w2 / (w1 + w2).

    tensors: same shape and float dtype. weights: N numbers >= 0, not all zero. base: see `slerp`.
    Returns the tensor in the shape and dtype of the first, and its report. LERP is used where `slerp`
    uses it (any pair counts), and where the mean is not unique (inputs spread beyond a hemisphere).
    Raises UserError for unequal shapes or dtypes, bad weights, and values that are NaN or infinite.
    """
    return _mean(tensors, weights, base, name, "")


def linear_mean(
    tensors: Sequence[Tensor], weights: Sequence[float], *, base: Tensor | None = None, name: str = ""
) -> tuple[Tensor, SlerpReport]:
    """The weighted sum of N >= 1 tensors (LM-Cocktail, arXiv 2311.13534); arguments and errors as of `spherical_mean`.

    The weights are normalised, so a base changes nothing but the angles in the report.
    """
    return _mean(tensors, weights, base, name, "asked for")


def _mean(
    tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor | None, name: str, reason: str
) -> tuple[Tensor, SlerpReport]:
    """The spherical mean, or the linear one where there is a reason for it."""
    shares = normalise_weights(weights, len(tensors))
    _check_tensors(tensors, base, name)
    norms = _norms(tensors, base, name)
    angles = _angles(tensors, base, norms)
    coefficients = torch.tensor(shares, dtype=torch.float64)
    if not reason:
        coefficients, reason = _coefficients(angles, norms, coefficients)
    merged = _combine(tensors, base, coefficients)
    directed = angles[norms > 0][:, norms > 0]
    values = tuple(coefficients.tolist())
    report = SlerpReport(
        name=name,
        path="lerp" if reason else "slerp",
        reason=reason,
        angle_degrees=math.degrees(directed.max().item()) if len(directed) > 1 else None,
        coefficients=values,
        excess=0.0 if reason else math.fsum(values) - 1.0,
        numel=merged.numel(),
    )
    return merged, report


def normalise_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return `count` weights that sum to 1; None means equal weights. Raises UserError for bad weights."""
    if count < 1:
        raise UserError("There is nothing to merge; name at least one checkpoint.")
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count:
        raise UserError(f"{len(given)} merge weights are given for {count} checkpoints; give one for each.")
    bad = next((w for w in given if not math.isfinite(w) or w < 0), None)
    if bad is not None:
        raise UserError(f"The merge weight {bad} is not a finite number >= 0; change it.")
    total = math.fsum(given)
    if not 0 < total < math.inf:
        raise UserError(f"The merge weights {given} sum to {total}; they must have a positive, finite sum.")
    return tuple(w / total for w in given)


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


def _chunks(tensors: Sequence[Tensor], base: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice, (N, chunk) float64): the flattened tensors, less the base where there is one."""
    flat = [t.detach().reshape(-1) for t in tensors]
    flat_base = None if base is None else base.detach().reshape(-1)
    size = max(1, _CHUNK // len(flat))
    for start in range(0, flat[0].numel(), size):
        part = slice(start, start + size)
        rows_NC = torch.stack([t[part].to(torch.float64) for t in flat])
        if flat_base is not None:
            rows_NC -= flat_base[part].to(torch.float64)
        yield part, rows_NC


def _norms(tensors: Sequence[Tensor], base: Tensor | None, name: str) -> Tensor:
    """(N,) Euclidean norms."""
    squares = torch.zeros(len(tensors), dtype=torch.float64)
    for _, rows_NC in _chunks(tensors, base):
        squares += rows_NC.square().sum(dim=1)
    finite = torch.isfinite(squares)
    if not finite.all():
        number = int((~finite).nonzero()[0]) + 1
        where = f"checkpoint number {number}" + ("" if base is None else " or of the base")
        raise UserError(f"Tensor {name!r} of {where} holds NaN or infinity; leave that checkpoint out.")
    return squares.sqrt()


def _angles(tensors: Sequence[Tensor], base: Tensor | None, norms: Tensor) -> Tensor:
    """(N, N) angles in radians, from chords |u_i - u_j|: arccos(dot) has no digits left near 0."""
    count = len(tensors)
    chords = torch.zeros(count, count, dtype=torch.float64)
    scale = torch.where(norms > 0, norms, 1.0)[:, None]
    for _, rows_NC in _chunks(tensors, base):
        units_NC = rows_NC / scale
        for i in range(count - 1):
            chords[i, i + 1 :] += (units_NC[i + 1 :] - units_NC[i]).square().sum(dim=1)
    chords = (chords + chords.T).sqrt()
    return 2.0 * torch.asin((chords / 2.0).clamp(max=1.0))


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
        return torch.sin(weights * widest) / math.sin(widest), ""
    mean = _karcher(torch.cos(angles), weights)
    return (weights, "no unique mean") if mean is None else (mean, "")


def _karcher(gram: Tensor, weights: Tensor) -> Tensor | None:
    """Coefficients c of the Karcher mean m = sum_i c_i u_i, from the Gram matrix of the unit vectors u_i.

    Gradient descent with unit steps: m <- exp_m(sum_i weight_i log_m(u_i)), written in the coefficients.
    Returns None where it does not settle: the points do not fit in a hemisphere around their mean.
    """
    resultant = (weights @ gram @ weights).item()
    if resultant < ANTIPODAL_WITHIN**2:
        return None
    mean = weights / math.sqrt(resultant)
    for _ in range(_MAX_ITERATIONS):
        cosines = (gram @ mean).clamp(-1.0, 1.0)
        phi = torch.acos(cosines)
        if phi[weights > 0].max() > math.pi - ANTIPODAL_WITHIN:
            return None
        # log_m(u_i) = phi_i / sin(phi_i) * (u_i - cos(phi_i) m); torch.sinc(x) = sin(pi x) / (pi x)
        pulls = torch.where(weights > 0, weights / torch.sinc(phi / math.pi), 0.0)
        tangent = pulls - (pulls @ cosines) * mean
        length = (tangent @ gram @ tangent).clamp(min=0.0).sqrt()
        mean = torch.cos(length) * mean + torch.sinc(length / math.pi) * tangent
        mean = mean / (mean @ gram @ mean).sqrt()
        # rounding in `cosines` is eps |c|, and comes back multiplied with c
        if tangent.abs().max() < _TOLERANCE * mean.abs().max().clamp(min=1.0) ** 2:
            return mean
    return None


def _combine(tensors: Sequence[Tensor], base: Tensor | None, coefficients: Tensor) -> Tensor:
    """sum_i c_i w_i (plus the base), summed in float64 and rounded once."""
    first = tensors[0]
    flat = torch.empty(first.numel(), dtype=first.dtype)
    flat_base = None if base is None else base.detach().reshape(-1)
    for part, rows_NC in _chunks(tensors, base):
        total_C = (rows_NC * coefficients[:, None]).sum(dim=0)
        if flat_base is not None:
            total_C += flat_base[part].to(torch.float64)
        flat[part] = _round_once(total_C, first.dtype)
    return flat.reshape(first.shape)


def _round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to dtype, to nearest even, once.

    torch goes from float64 to bfloat16 and float16 through float32 and so rounds twice. Rounding to
    *odd* in float32 first (truncate, set the last bit where anything was lost) makes the second
    rounding the only one.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return values.to(dtype)
    single = values.to(torch.float32)
    back = single.to(torch.float64)
    bits = single.view(torch.int32) - (back.abs() > values.abs()).to(torch.int32)
    bits |= (back != values).to(torch.int32)
    return bits.view(torch.float32).to(dtype)
