"""What each corruption function does (laws of all of them: tests/contracts/test_functions.py)."""

from __future__ import annotations

import pytest
import torch

from corruption.functions import add_noise, flip_sign, set_noise, zero_out

X = torch.tensor([[1.0, -5.0, 2.0, 0.5], [3.0, 1.0, -4.0, 0.0]])
MASK = torch.tensor([True, False])


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_noise_of_sigma_zero_is_the_identity(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    assert torch.equal(add_noise(x, MASK, dims=4, select="top", sigma=0.0, rng=rng()), x)


def test_noise_has_the_stated_deviation() -> None:
    x = torch.full((100, 400), 3.0)
    added = add_noise(x, torch.ones(100, dtype=torch.bool), dims=400, select="first", sigma=5.0, rng=rng()) - x
    assert added.std().item() == pytest.approx(5.0, rel=0.02)
    assert added.mean().item() == pytest.approx(0.0, abs=0.1)


def test_set_noise_forgets_the_old_values() -> None:
    one = set_noise(X, MASK, dims=4, select="first", sigma=1.0, rng=rng())
    other = set_noise(X + 7, MASK, dims=4, select="first", sigma=1.0, rng=rng())
    assert torch.equal(one[0], other[0])


def test_zero_and_flip_touch_the_largest_by_absolute_value() -> None:
    zeroed = zero_out(X, MASK, dims=2, select="top", rng=rng())
    assert zeroed.tolist() == [[1.0, 0.0, 0.0, 0.5], [3.0, 1.0, -4.0, 0.0]]
    flipped = flip_sign(X, MASK, dims=2, select="top", rng=rng())
    assert flipped.tolist() == [[1.0, 5.0, -2.0, 0.5], [3.0, 1.0, -4.0, 0.0]]


def test_flipping_twice_gives_the_rows_back() -> None:
    once = flip_sign(X, MASK, dims=3, select="random", rng=rng())
    assert torch.equal(flip_sign(once, MASK, dims=3, select="random", rng=rng()), X)
