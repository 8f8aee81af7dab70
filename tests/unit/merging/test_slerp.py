"""SLERP and the spherical mean against literal numpy float64, with its own rounding to bfloat16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3emb.core.errors import UserError
from qwen3emb.merging.slerp import _karcher, normalise_weights, slerp, spherical_mean


def reference(w1: np.ndarray, w2: np.ndarray, alpha: float) -> np.ndarray:
    """RECIPE section 4, word for word, on flat float64 vectors."""
    theta = np.arccos(np.clip(w1 @ w2 / (np.linalg.norm(w1) * np.linalg.norm(w2)), -1, 1))
    left = np.sin((1 - alpha) * theta) / np.sin(theta)
    return left * w1 + np.sin(alpha * theta) / np.sin(theta) * w2


def round_to_bits(x: np.ndarray, bits: int) -> np.ndarray:
    """Round float64 to `bits` significant bits, ties to even (normal numbers only)."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


def pair(seed: int, shape: tuple[int, ...], degrees: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two float64 tensors, of different lengths, at the given angle (about 90 degrees where None)."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, math.prod(shape)))
    if degrees is not None:
        a /= np.linalg.norm(a)
        b -= (b @ a) * a
        b = math.cos(math.radians(degrees)) * a + math.sin(math.radians(degrees)) * b / np.linalg.norm(b)
    return torch.tensor(a * 3).reshape(shape), torch.tensor(b * 5).reshape(shape)


def flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float64).numpy().reshape(-1)


@pytest.mark.parametrize("degrees", [None, 0.01, 1.0, 30.0, 90.0, 150.0, 179.0])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_slerp_equals_the_formula(degrees: float | None, alpha: float) -> None:
    w1, w2 = pair(1, (40, 25), degrees)
    merged, report = slerp(w1, w2, alpha, name="x")
    np.testing.assert_allclose(flat(merged), reference(flat(w1), flat(w2), alpha), rtol=1e-8, atol=1e-12)
    assert merged.shape == w1.shape
    assert (report.path, report.reason, report.name, report.numel) == ("slerp", "", "x", 1000)
    if degrees is not None:
        assert report.angle_degrees == pytest.approx(degrees, abs=1e-9)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24)])
def test_result_is_the_float64_reference_rounded_once(dtype: torch.dtype, bits: int) -> None:
    for seed in range(5):
        w1, w2 = (w.to(dtype) for w in pair(seed, (300, 1000)))
        merged, _ = slerp(w1, w2, 0.3)
        exact = reference(flat(w1), flat(w2), 0.3)
        assert merged.dtype == dtype
        big = np.abs(exact) > 1e-4  # subnormal float16 has fewer bits
        np.testing.assert_array_equal(flat(merged)[big], round_to_bits(exact, bits)[big])


def test_bfloat16_is_not_rounded_through_float32() -> None:
    # 1 + 2^-8 + 2^-40 is above the middle of two bfloat16 numbers; float32 makes it the middle
    w1, w2 = torch.tensor([1.0]).bfloat16(), torch.tensor([1.0 + 2**-7]).bfloat16()
    merged, report = slerp(w1, w2, 0.5 + 2**-33)
    assert report.path == "lerp"
    assert merged.item() == 1.0 + 2**-7
    assert slerp(w1, w2, 0.5)[0].item() == 1.0  # the middle itself goes to even
    negative, _ = slerp(-w1, -w2, 0.5 + 2**-33)
    assert negative.item() == -1.0 - 2**-7


def test_large_tensors_are_read_over_several_chunks() -> None:
    w1, w2 = (w.float() for w in pair(3, (700_001,), 40.0))
    merged, report = slerp(w1, w2, 0.5)
    exact = reference(flat(w1), flat(w2), 0.5)
    np.testing.assert_array_equal(flat(merged), exact.astype(np.float32))
    assert report.angle_degrees == pytest.approx(40.0, abs=1e-5)


@pytest.mark.parametrize("degrees", [1e-9, 1e-7, 1e-6, 1e-4, 1e-2])
def test_small_angles_are_measured_and_join_lerp_smoothly(degrees: float) -> None:
    w1, w2 = pair(4, (5000,), degrees)
    merged, report = slerp(w1, w2, 0.25)
    assert report.angle_degrees == pytest.approx(degrees, rel=1e-5)
    assert report.path == ("lerp" if math.radians(degrees) < 1e-8 else "slerp")
    np.testing.assert_allclose(flat(merged), 0.75 * flat(w1) + 0.25 * flat(w2), rtol=1e-7, atol=1e-10)


def test_parallel_vectors_become_lerp() -> None:
    w = pair(5, (64,))[0].float()
    merged, report = slerp(w, 2 * w, 0.5)
    torch.testing.assert_close(merged, 1.5 * w)
    assert (report.path, report.reason, report.coefficients) == ("lerp", "parallel", (0.5, 0.5))
    assert report.angle_degrees == 0.0 and report.excess == 0.0


def test_a_zero_vector_becomes_lerp() -> None:
    w = pair(6, (64,))[0].float()
    merged, report = slerp(w, torch.zeros_like(w), 0.25)
    torch.testing.assert_close(merged, 0.75 * w)
    assert (report.path, report.reason, report.angle_degrees) == ("lerp", "zero norm", None)
    _, three = spherical_mean([w, torch.zeros_like(w), w.flip(0)], [1, 1, 1])
    expected = np.degrees(np.arccos(flat(w) @ flat(w)[::-1] / (flat(w) @ flat(w))))
    assert three.path == "lerp" and three.angle_degrees == pytest.approx(expected)


def test_antipodal_vectors_become_lerp_and_stay_finite() -> None:
    w = pair(7, (64,))[0].float()
    merged, report = slerp(w, -2 * w, 0.25)
    torch.testing.assert_close(merged, 0.25 * w)
    assert (report.path, report.reason) == ("lerp", "antipodal")
    assert report.angle_degrees == pytest.approx(180.0)
    _, three = spherical_mean([w, w.flip(0), -w], [1, 1, 1])
    assert (three.path, three.reason) == ("lerp", "antipodal")


def test_points_without_a_unique_mean_become_lerp() -> None:
    # three directions at 120 degrees in a plane: their weighted sum is zero
    points = [torch.tensor([math.cos(a), math.sin(a)]).double() for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    merged, report = spherical_mean(points, [1, 1, 1])
    assert (report.path, report.reason) == ("lerp", "no unique mean")
    assert merged.abs().max() < 1e-15


def karcher_residual(tensors: list[torch.Tensor], weights: list[float], coefficients: tuple[float, ...]) -> float:
    """|sum_i weight_i log_m(u_i)| with full vectors, m = sum_i c_i u_i; also asserts |m| = 1."""
    units = [flat(t) / np.linalg.norm(flat(t)) for t in tensors]
    mean = sum(c * u for c, u in zip(coefficients, units, strict=True))
    assert np.linalg.norm(mean) == pytest.approx(1.0, abs=1e-12)
    total = np.zeros_like(mean)
    for weight, unit in zip(weights, units, strict=True):
        across = unit - (unit @ mean) * mean
        size = np.linalg.norm(across)
        angle = np.arctan2(size, unit @ mean)
        total += weight / sum(weights) * angle * across / size if size > 0 else 0.0
    return float(np.linalg.norm(total))


@pytest.mark.parametrize("noise", [1e-4, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 3.0, 1.0], [1.0, 2.0, 3.0, 4.0, 0.5]])
def test_mean_of_several_meets_the_karcher_condition(noise: float, weights: list[float]) -> None:
    rng = np.random.default_rng(8)
    shared = rng.standard_normal(2000)
    tensors = [torch.tensor(shared + noise * rng.standard_normal(2000)) for _ in weights]
    merged, report = spherical_mean(tensors, weights)
    assert report.path == "slerp"
    assert karcher_residual(tensors, weights, report.coefficients) < 1e-12
    expected = sum(c * flat(t) for c, t in zip(report.coefficients, tensors, strict=True))
    np.testing.assert_allclose(flat(merged), expected, rtol=1e-12, atol=1e-12)
    pairs = [(a, b) for i, a in enumerate(tensors) for b in tensors[:i]]
    cosines = [flat(a) @ flat(b) / np.linalg.norm(flat(a)) / np.linalg.norm(flat(b)) for a, b in pairs]
    assert report.angle_degrees == pytest.approx(np.degrees(np.arccos(min(cosines))), rel=1e-6)


@given(st.floats(0.01, 178.0), st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_the_iteration_gives_slerp_for_two(degrees: float, alpha: float) -> None:
    theta = math.radians(degrees)
    gram = torch.tensor([[1.0, math.cos(theta)], [math.cos(theta), 1.0]], dtype=torch.float64)
    mean = _karcher(gram, torch.tensor([1 - alpha, alpha], dtype=torch.float64))
    assert mean is not None
    expected = np.sin(np.array([1 - alpha, alpha]) * theta) / np.sin(theta)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-7, atol=1e-9)


def test_mean_of_two_is_slerp_and_a_zero_weight_drops_out() -> None:
    w1, w2 = pair(9, (33, 7), 70.0)
    w3 = pair(10, (33, 7))[0]
    exact, _ = slerp(w1, w2, 0.75)
    torch.testing.assert_close(spherical_mean([w1, w2], [1, 3])[0], exact, rtol=1e-15, atol=0)
    torch.testing.assert_close(spherical_mean([w1, w3, w2], [1, 0, 3])[0], exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(spherical_mean([w1, w2, w2], [2, 3, 3])[0], exact, rtol=1e-12, atol=1e-14)


@given(st.lists(st.floats(0.05, 5), min_size=2, max_size=5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_checkpoints_does_not_matter(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(50)
    tensors = [torch.tensor(shared + rng.standard_normal(50)) for _ in weights]
    merged, _ = spherical_mean(tensors, weights)
    again, _ = spherical_mean(tensors[::-1], weights[::-1])
    torch.testing.assert_close(merged, again, rtol=1e-9, atol=1e-11)


def test_task_vectors_are_merged_around_the_base() -> None:
    base = pair(11, (80, 10))[0].float()
    d1, d2 = (d.float() * 1e-3 for d in pair(12, (80, 10), 50.0))
    w1, w2 = base + d1, base + d2
    merged, report = slerp(w1, w2, 0.4, base=base)
    exact = flat(base) + reference(flat(w1) - flat(base), flat(w2) - flat(base), 0.4)
    np.testing.assert_array_equal(flat(merged), exact.astype(np.float32))
    assert report.angle_degrees == pytest.approx(50.0, abs=0.05)
    assert report.excess > 0.05
    raw = slerp(w1, w2, 0.4)[1]
    assert raw.angle_degrees is not None and raw.angle_degrees < 0.3 and raw.excess < 1e-5


def test_one_tensor_empty_tensors_and_scalars() -> None:
    w = pair(13, (6, 2))[0].bfloat16()
    assert torch.equal(spherical_mean([w], [2.0])[0], w)
    assert slerp(torch.zeros(0), torch.zeros(0), 0.5)[0].shape == (0,)
    assert slerp(torch.tensor(1.0), torch.tensor(3.0), 0.5)[0].item() == 2.0
    assert slerp(torch.tensor(-1.0), torch.tensor(3.0), 0.5)[0].item() == 1.0
    turned = pair(14, (6, 2))[0]
    torch.testing.assert_close(slerp(turned.T, turned.T.flip(0), 0.5)[0], slerp(turned, turned.flip(1), 0.5)[0].T)


def test_subnormal_and_overflowing_float16() -> None:
    tiny = torch.tensor([2.0**-24, 2.0**-23]).half()
    assert slerp(tiny, tiny, 0.5)[0].tolist() == tiny.tolist()
    low, high = torch.tensor([60000.0, 0.0]).half(), torch.tensor([0.0, 60000.0]).half()
    merged, _ = slerp(low, high, 0.5)
    assert merged.tolist() == torch.tensor([60000 / 2**0.5] * 2).half().tolist()


def test_refusals() -> None:
    w = torch.ones(3)
    with pytest.raises(UserError, match=r"alpha is 1\.5"):
        slerp(w, w, 1.5)
    with pytest.raises(UserError, match="alpha is nan"):
        slerp(w, w, math.nan)
    with pytest.raises(UserError, match=r"'q'.*\(3,\).*\(4,\)"):
        slerp(w, torch.ones(4), 0.5, name="q")
    with pytest.raises(UserError, match="bfloat16"):
        slerp(w, w.bfloat16(), 0.5)
    with pytest.raises(UserError, match="in the base"):
        slerp(w, w, 0.5, base=torch.ones(1))
    with pytest.raises(UserError, match="'q' of checkpoint number 2 holds NaN or infinity"):
        slerp(w, torch.tensor([1.0, math.nan, 1.0]), 0.5, name="q")
    with pytest.raises(UserError, match="only floating-point"):
        slerp(torch.ones(3).long(), torch.ones(3).long(), 0.5)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError):
        normalise_weights(weights, 2)


def test_weights_are_normalised() -> None:
    assert normalise_weights(None, 4) == (0.25,) * 4
    assert normalise_weights([1, 3], 2) == (0.25, 0.75)
    with pytest.raises(UserError, match="nothing to merge"):
        normalise_weights(None, 0)
