"""ECO's corruption functions: pure functions on embedding rows (arXiv:2406.07933).

Each takes x (..., T, D) of a floating type (numpy's, or `ml_dtypes.bfloat16`), a bool mask (..., T) of the
rows to change, how many coordinates to touch (`dims`) and which (`select`):
    first   coordinates 0..dims-1
    random  one random set of `dims` coordinates, the same for all rows of the call
    top     per row, the `dims` coordinates of largest absolute value
and, if it is random, a source of random bits. Each returns an array of x's shape and type: a new one, or `out`, which
may be x itself and is the only array that is modified. Rows outside the mask and coordinates not selected stay
bit-identical. All raise ValueError when dims is not in [1, D], when the mask doesn't fit, and when sigma is negative or
not finite.

The paper's reorderings are not implemented: its code permutes the token axis of the whole sequence, masked or not, so
its figures for them describe another operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.random import BitGenerator
from numpy.typing import NDArray

# ml_dtypes' bfloat16 is a numpy type without a name in numpy's own hierarchy.
FloatArray = NDArray[Any]
RowMask = NDArray[np.bool_]

# Values to change at a time. Chosen: 256 KiB in float32, which stay in the processor's L2 cache.
BATCH_VALUES = 1 << 16
# Draws to look up at a time, for the same reason. Divisible by four: 64 random bits make four draws.
BATCH_DRAWS = 1 << 14


def add_noise(
    x: FloatArray,
    mask: RowMask,
    *,
    dims: int,
    select: str,
    sigma: float,
    rng: BitGenerator,
    out: FloatArray | None = None,
) -> FloatArray:
    """Add N(0, sigma²); sigma is absolute, in units of x. sigma 0 is the identity."""
    quantiles = _quantiles_of(sigma)
    buffer, noise = _buffer(x, np.promote_types(x.dtype, np.float32)), _buffer(x, np.dtype(np.float32))

    def change(values: FloatArray) -> FloatArray:
        widened = buffer[: values.size].reshape(values.shape)
        widen(values, widened)
        widened += draw_normal(rng, quantiles, noise[: values.size]).reshape(values.shape)
        return widened

    return _change_rows(x, mask, dims, select, rng, change, out)


def set_noise(
    x: FloatArray,
    mask: RowMask,
    *,
    dims: int,
    select: str,
    sigma: float,
    rng: BitGenerator,
    out: FloatArray | None = None,
) -> FloatArray:
    """Overwrite with N(0, sigma²). Rows outside the mask are kept (the paper's code zeroes them)."""
    quantiles = _quantiles_of(sigma)
    noise = _buffer(x, np.dtype(np.float32))

    def change(values: FloatArray) -> FloatArray:
        return draw_normal(rng, quantiles, noise[: values.size]).reshape(values.shape)

    return _change_rows(x, mask, dims, select, rng, change, out)


def zero_out(
    x: FloatArray, mask: RowMask, *, dims: int, select: str, rng: BitGenerator, out: FloatArray | None = None
) -> FloatArray:
    """Set to zero."""
    return _change_rows(x, mask, dims, select, rng, np.zeros_like, out)


def flip_sign(
    x: FloatArray, mask: RowMask, *, dims: int, select: str, rng: BitGenerator, out: FloatArray | None = None
) -> FloatArray:
    """Multiply by -1."""
    return _change_rows(x, mask, dims, select, rng, np.negative, out)


FUNCTIONS: dict[str, Callable[..., FloatArray]] = {
    "noise": add_noise,
    "set-noise": set_noise,
    "zero": zero_out,
    "flip": flip_sign,
}


def draw_normal(rng: BitGenerator, quantiles: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill `out` (1-D) with draws, each one of 65,536 equally likely `quantiles`, and return it.

    This is several times faster than exact draws from a normal distribution, and gives the same result for the same
    bits in every version of numpy.
    """
    # numpy's native index type: otherwise numpy converts the indices on each call.
    indices = np.empty(min(BATCH_DRAWS, -(-out.size // 4) * 4), dtype=np.intp)
    for begin in range(0, out.size, BATCH_DRAWS):
        batch = out[begin : begin + BATCH_DRAWS]
        bits = rng.random_raw(-(-batch.size // 4)).astype("<u8", copy=False).view("<u2")
        indices[: bits.size] = bits
        # All indices are valid, so nothing wraps; but with this mode numpy writes into `out` without a copy.
        quantiles.take(indices[: batch.size], out=batch, mode="wrap")
    return out


def _quantiles_of(sigma: float) -> NDArray[np.float32]:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma {sigma} is not a finite number >= 0")
    return standard_quantiles() * np.float32(sigma)


@cache
def standard_quantiles() -> NDArray[np.float32]:
    """Return (65536,) quantiles of N(0, 1) in ascending order, at probabilities (i + 0.5) / 65536.

    They are scaled so that mean and variance are exactly 0 and 1. All are within ±4.4, and neighbours within one
    standard deviation differ by less than 0.0001.
    """
    normal = NormalDist()
    upper = np.array([normal.inv_cdf(0.5 + (i + 0.5) / 65536) for i in range(32768)])
    upper /= np.sqrt(np.mean(upper**2))
    table: NDArray[np.float32] = np.concatenate([-upper[::-1], upper]).astype(np.float32)
    return table


@np.errstate(over="ignore", invalid="ignore")
def approach(rows: FloatArray, decoy_rows: FloatArray, strength: float, buffers: tuple[FloatArray, FloatArray]) -> None:
    """Set `rows` to (1 - strength) · rows + strength · decoy_rows, in place.

    Calculated from the nearer end, so that strength 0 and 1 are exact. buffers: two arrays of the same shape and of a
    type at least as wide as float32, to calculate in.
    """
    a, b = buffers
    widen(rows, a)
    widen(decoy_rows, b)
    near, far, factor = (a, b, strength) if strength < 0.5 else (b, a, strength - 1.0)
    np.subtract(b, a, out=far)
    far *= far.dtype.type(factor)
    far += near
    np.copyto(rows, far, casting="same_kind")


def widen(x: FloatArray, out: FloatArray) -> None:
    """Copy x into `out`, of a type at least as wide, without rounding."""
    if x.dtype != np.float16 or out.dtype != np.float32 or not is_finite(x):
        np.copyto(out, x)
        return
    # numpy converts float16 value by value, which takes six times as long. Shift the sign to the top, and exponent and
    # fraction to float32's positions; clear the copies of the sign that the arithmetic shift makes; then multiply by
    # 2**112, the difference of the exponent biases (127 - 15).
    bits = out.view(np.int32)
    np.copyto(bits, x.view(np.uint16))
    np.left_shift(bits, 16, out=bits)
    np.right_shift(bits, 3, out=bits)
    np.bitwise_and(bits, -0x70000001, out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)


def _buffer(x: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """A buffer to calculate in, reused for every batch: new memory each time costs more than the calculation."""
    return np.empty(min(x.size, max(BATCH_VALUES, x.shape[-1])), dtype=dtype)


def is_finite(x: FloatArray) -> bool:
    """Whether all values are finite. x: an array of a floating type."""
    flat = x.reshape(-1)
    return all(_is_finite(flat[begin : begin + BATCH_VALUES]) for begin in range(0, flat.size, BATCH_VALUES))


def _is_finite(x: FloatArray) -> bool:
    # An exponent of all ones means infinity or NaN; testing the bits is five times faster than isfinite in 16 bits.
    all_ones = {"bfloat16": 0x7F80, "float16": 0x7C00}.get(x.dtype.name)
    return bool(np.isfinite(x).all()) if all_ones is None else int((x.view(np.uint16) & 0x7FFF).max()) < all_ones


# Values that are too large become infinite; the corruptor checks the rows before it sends them.
@np.errstate(over="ignore", invalid="ignore")
def _change_rows(
    x: FloatArray,
    mask: RowMask,
    dims: int,
    select: str,
    rng: BitGenerator,
    change: Callable[[FloatArray], FloatArray],
    out: FloatArray | None,
) -> FloatArray:
    """Return x with `change` applied to the selected coordinates of the masked rows."""
    width = x.shape[-1]
    if not 1 <= dims <= width:
        raise ValueError(f"dims {dims} is not in [1, {width}]")
    if mask.shape != x.shape[:-1] or mask.dtype != np.bool_:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, not bool {x.shape[:-1]}")
    if select not in ("first", "random", "top"):
        raise ValueError(f"select {select!r} is not one of first, random, top")
    # The order that sorts random numbers is a random permutation.
    columns = np.argsort(rng.random_raw(width), kind="stable")[:dims] if select == "random" else None
    if out is None:
        out = x.copy()
    elif out is not x:
        out[...] = x
    rows = out.reshape(-1, width)
    chosen = np.flatnonzero(mask)
    batch_rows = max(1, BATCH_VALUES // width)
    for begin in range(0, len(chosen), batch_rows):
        batch = chosen[begin : begin + batch_rows]
        if dims == width or select == "first":
            # A slice of adjacent rows needs no copy.
            is_adjacent = batch[-1] - batch[0] + 1 == len(batch)
            index = slice(batch[0], batch[-1] + 1) if is_adjacent else batch
            rows[index, :dims] = change(rows[index, :dims])
        elif columns is not None:
            rows[batch[:, None], columns] = change(rows[batch[:, None], columns])
        else:
            magnitude = np.abs(rows[batch].astype(np.float32))
            largest = np.argpartition(magnitude, width - dims, axis=-1)[:, width - dims :]
            rows[batch[:, None], largest] = change(rows[batch[:, None], largest])
    return out
