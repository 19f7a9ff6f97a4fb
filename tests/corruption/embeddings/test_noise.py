"""Each corruption function; laws that hold for all are in tests/contracts/test_functions.py."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.random import SFC64

from lethe.corruption.embeddings.noise import (
    add_noise,
    draw_normal,
    flip_sign,
    is_finite,
    set_noise,
    standard_quantiles,
    widen,
    zero_out,
)

X = np.array([[1.0, -5.0, 2.0, 0.5], [3.0, 1.0, -4.0, 0.0]], dtype=np.float32)
MASK = np.array([True, False])


def rng() -> SFC64:
    return SFC64(0)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_noise_of_sigma_zero_is_the_identity(dtype: type) -> None:
    x = X.astype(dtype)
    assert np.array_equal(add_noise(x, MASK, dims=4, select="top", sigma=0.0, rng=rng()), x)


def test_noise_has_the_given_standard_deviation() -> None:
    x = np.full((100, 400), 3.0, dtype=np.float32)
    added = add_noise(x, np.ones(100, dtype=np.bool_), dims=400, select="first", sigma=5.0, rng=rng()) - x
    assert added.std() == pytest.approx(5.0, rel=0.02)
    assert added.mean() == pytest.approx(0.0, abs=0.1)


def test_set_noise_does_not_depend_on_the_old_values() -> None:
    one = set_noise(X, MASK, dims=4, select="first", sigma=1.0, rng=rng())
    other = set_noise(X + 7, MASK, dims=4, select="first", sigma=1.0, rng=rng())
    assert np.array_equal(one[0], other[0])


def test_top_selects_by_absolute_value() -> None:
    zeroed = zero_out(X, MASK, dims=2, select="top", rng=rng())
    assert zeroed.tolist() == [[1.0, 0.0, 0.0, 0.5], [3.0, 1.0, -4.0, 0.0]]
    flipped = flip_sign(X, MASK, dims=2, select="top", rng=rng())
    assert flipped.tolist() == [[1.0, 5.0, -2.0, 0.5], [3.0, 1.0, -4.0, 0.0]]


def test_flipping_twice_is_the_identity() -> None:
    once = flip_sign(X, MASK, dims=3, select="random", rng=rng())
    assert np.array_equal(flip_sign(once, MASK, dims=3, select="random", rng=rng()), X)


def test_draws_are_normal() -> None:
    """Compare the shares below some points with the normal distribution, within four standard errors."""
    size = 1_000_000
    drawn = draw_normal(rng(), standard_quantiles(), np.empty(size, dtype=np.float32))
    for point, share in [(-3.0, 0.00135), (-1.0, 0.158655), (0.0, 0.5), (0.5, 0.691462), (2.0, 0.97725)]:
        error = 4 * (share * (1 - share) / size) ** 0.5 + 1e-5  # 1e-5: the distance between quantiles
        assert (drawn < point).mean() == pytest.approx(share, abs=error)
    assert drawn.mean() == pytest.approx(0, abs=0.004) and drawn.var() == pytest.approx(1, abs=0.006)
    # Successive draws are uncorrelated.
    assert np.corrcoef(drawn[:-1], drawn[1:])[0, 1] == pytest.approx(0, abs=0.004)


def test_the_draws_of_a_seed_never_change() -> None:
    """A prompt must get the same noise after an upgrade: answers and vLLM's prefix cache depend on it."""
    expected = [0.948499, -1.556028, 0.086722, -0.381007, -0.266084]
    assert draw_normal(SFC64(1956), standard_quantiles(), np.empty(5, dtype=np.float32)).tolist() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_infinity_and_nan_are_detected_in_each_type(dtype: type) -> None:
    largest = np.array([[1.0, -60_000.0]], dtype=dtype)
    assert is_finite(largest) and is_finite(largest[:0])
    for wrong in (np.inf, -np.inf, np.nan):
        assert not is_finite(np.array([[1.0, wrong]], dtype=dtype))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of ml_dtypes, for NaN
def test_widening_is_exact_for_all_values(dtype: type, finite: bool) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    values = values[np.isfinite(values)][:65024] if finite else values
    values = values.reshape(-1, 256)
    out = np.full(values.shape, 3, dtype=np.float32)
    widen(values[:, 1:], out[:, 1:])
    expected = values.astype(np.float32)
    expected[:, 0] = 3
    assert np.array_equal(out, expected, equal_nan=True)
    assert np.array_equal(np.signbit(out), np.signbit(expected))
