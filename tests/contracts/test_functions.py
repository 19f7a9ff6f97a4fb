"""Laws that hold for every corruption function."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.random import SFC64

from lethe.corruption.embeddings.noise import BATCH_VALUES, FUNCTIONS, FloatArray
from lethe.corruption.spec import NEEDS_SIGMA

SELECTS = ["first", "random", "top"]
DTYPES: list[Any] = [ml_dtypes.bfloat16, np.float16, np.float32]
every = pytest.mark.parametrize("name", FUNCTIONS)
every_select = pytest.mark.parametrize("select", SELECTS)


def embeddings(dtype: Any = np.float32, shape: tuple[int, ...] = (6, 10)) -> FloatArray:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


MASK = np.array([True, False, True, True, False, True])


def apply(name: str, x: FloatArray, mask: FloatArray = MASK, *, seed: int = 0, **given: Any) -> FloatArray:
    arguments: dict[str, Any] = {"dims": 4, "select": "first", "rng": SFC64(seed)}
    if name in NEEDS_SIGMA:
        arguments["sigma"] = 2.0
    return FUNCTIONS[name](x, mask, **arguments | given)


def test_needs_sigma_lists_the_functions_with_sigma() -> None:
    assert NEEDS_SIGMA <= FUNCTIONS.keys()


@every
@every_select
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_dtype_and_input_are_kept(name: str, select: str, dtype: Any) -> None:
    x = embeddings(dtype)
    out = apply(name, x, select=select)
    assert out.shape == x.shape and out.dtype == dtype
    assert np.array_equal(x, embeddings(dtype))


@every
@every_select
def test_only_rows_in_the_mask_change(name: str, select: str) -> None:
    x = embeddings()
    out = apply(name, x, select=select)
    assert np.array_equal(out[~MASK], x[~MASK])
    assert (out[MASK] != x[MASK]).sum(axis=1).tolist() == [4, 4, 4, 4]


@every
def test_first_changes_the_first_coordinates(name: str) -> None:
    changed = apply(name, embeddings())[MASK] != embeddings()[MASK]
    assert changed[:, :4].all() and not changed[:, 4:].any()


@every
def test_random_changes_one_set_of_coordinates(name: str) -> None:
    changed = apply(name, embeddings(), select="random")[MASK] != embeddings()[MASK]
    assert (changed == changed[0]).all()
    other = apply(name, embeddings(), select="random", seed=9)[MASK] != embeddings()[MASK]
    assert not np.array_equal(other, changed)


@every
def test_top_changes_the_largest_coordinates_of_each_row(name: str) -> None:
    x = embeddings()
    changed = apply(name, x, select="top")[MASK] != x[MASK]
    kept = np.where(changed, 0, np.abs(x[MASK])).max(axis=1)
    assert (np.where(changed, np.abs(x[MASK]), np.inf).min(axis=1) > kept).all()


@every
@every_select
def test_same_seed_same_result(name: str, select: str) -> None:
    assert np.array_equal(apply(name, embeddings(), select=select), apply(name, embeddings(), select=select))


@pytest.mark.parametrize("name", sorted(NEEDS_SIGMA))
def test_another_seed_gives_other_noise(name: str) -> None:
    assert not np.array_equal(apply(name, embeddings()), apply(name, embeddings(), seed=1))


@every
def test_batches_work_and_an_empty_mask_changes_nothing(name: str) -> None:
    x = embeddings(shape=(2, 6, 10))
    out = apply(name, x, np.stack([MASK, np.zeros_like(MASK)]))
    assert np.array_equal(out[1], x[1]) and not np.array_equal(out[0], x[0])


@every
@pytest.mark.parametrize("dims", [0, -1, 11])
def test_dims_outside_the_width_raise(name: str, dims: int) -> None:
    with pytest.raises(ValueError, match=r"not in \[1, 10\]"):
        apply(name, embeddings(), dims=dims)


@every
def test_a_mask_of_another_shape_raises(name: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        apply(name, embeddings(), MASK[:3])
    with pytest.raises(ValueError, match="mask"):
        apply(name, embeddings(), MASK.astype(np.int8))


@every
def test_an_unknown_selection_raises(name: str) -> None:
    with pytest.raises(ValueError, match="'last'"):
        apply(name, embeddings(), select="last")


@pytest.mark.parametrize("name", sorted(NEEDS_SIGMA))
@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_an_invalid_sigma_raises(name: str, sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        apply(name, embeddings(), sigma=sigma)


@every
@every_select
def test_several_batches_of_rows_change_like_one(name: str, select: str) -> None:
    """With more values than one batch, rows outside the mask stay and all others change."""
    x = embeddings(shape=(3 * BATCH_VALUES // 1024, 1024))
    mask = np.arange(len(x)) % 3 != 0
    out = apply(name, x, mask, select=select)
    assert np.array_equal(out[~mask], x[~mask])
    assert ((out[mask] != x[mask]).sum(axis=1) == 4).all()
