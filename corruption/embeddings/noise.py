"""ECO's corruption functions: pure functions on embedding rows (arXiv:2406.07933).

Each takes x (..., T, D) of a floating type (numpy's, or `ml_dtypes.bfloat16`), a bool mask (..., T) of the
rows to change, how many coordinates to touch (`dims`) and which (`select`):
    first   coordinates 0..dims-1
    random  one random set of `dims` coordinates, the same for all rows of the call
    top     per row, the `dims` coordinates of largest absolute value
and, where it needs chance, a source of random bits. Each returns an array of x's shape and type: a new one, or
`out`, which may be x itself and is the only thing that is modified. Rows outside the mask and coordinates not
selected are bit-identical. Raises ValueError when dims is not in [1, D], the mask doesn't fit, or sigma is
negative or not finite. The paper's reorderings are left out: its code permutes the token axis of the whole
sequence, masked or not, so its figures describe something else.
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

# Changed rows are handled this many values at a time: what is at work stays in the processor's cache.
BATCH_VALUES = 1 << 16
# Draws are looked up so many at a time. Divisible by four: a source gives the bits of four draws at once.
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
    room, noise = _room(x, np.promote_types(x.dtype, np.float32)), _room(x, np.dtype(np.float32))

    def change(values: FloatArray) -> FloatArray:
        wide = room[: values.size].reshape(values.shape)
        widen(values, wide)
        wide += draw_normal(rng, quantiles, noise[: values.size]).reshape(values.shape)
        return wide

    return _changed(x, mask, dims, select, rng, change, out)


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
    noise = _room(x, np.dtype(np.float32))

    def change(values: FloatArray) -> FloatArray:
        return draw_normal(rng, quantiles, noise[: values.size]).reshape(values.shape)

    return _changed(x, mask, dims, select, rng, change, out)


def zero_out(
    x: FloatArray, mask: RowMask, *, dims: int, select: str, rng: BitGenerator, out: FloatArray | None = None
) -> FloatArray:
    """Set to zero."""
    return _changed(x, mask, dims, select, rng, np.zeros_like, out)


def flip_sign(
    x: FloatArray, mask: RowMask, *, dims: int, select: str, rng: BitGenerator, out: FloatArray | None = None
) -> FloatArray:
    """Multiply by -1."""
    return _changed(x, mask, dims, select, rng, np.negative, out)


FUNCTIONS: dict[str, Callable[..., FloatArray]] = {
    "noise": add_noise,
    "set-noise": set_noise,
    "zero": zero_out,
    "flip": flip_sign,
}


def draw_normal(rng: BitGenerator, quantiles: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """`out`, a line of values, filled with draws, each of them one of 65,536 equally likely `quantiles`.

    Several times faster than exact draws from a normal distribution, and the same for the same bits in every
    version of numpy.
    """
    # As wide as numpy looks things up: else it makes such an array itself, each time.
    places = np.empty(min(BATCH_DRAWS, -(-out.size // 4) * 4), dtype=np.intp)
    for begin in range(0, out.size, BATCH_DRAWS):
        some = out[begin : begin + BATCH_DRAWS]
        bits = rng.random_raw(-(-some.size // 4)).astype("<u8", copy=False).view("<u2")
        places[: bits.size] = bits
        # No place lies outside, so nothing is wrapped: but numpy needn't write into a copy first.
        quantiles.take(places[: some.size], out=some, mode="wrap")
    return out


def _quantiles_of(sigma: float) -> NDArray[np.float32]:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma {sigma} is not a finite number >= 0")
    return standard_quantiles() * np.float32(sigma)


@cache
def standard_quantiles() -> NDArray[np.float32]:
    """(65536,) in rising order, of N(0, 1): mean and variance are exact, none lies beyond 4.4.

    Neighbours differ by less than 0.0001 within one standard deviation.
    """
    normal = NormalDist()
    upper = np.array([normal.inv_cdf(0.5 + (i + 0.5) / 65536) for i in range(32768)])
    upper /= np.sqrt(np.mean(upper**2))
    table: NDArray[np.float32] = np.concatenate([-upper[::-1], upper]).astype(np.float32)
    return table


@np.errstate(over="ignore", invalid="ignore")
def approach(rows: FloatArray, goal: FloatArray, strength: float, room: tuple[FloatArray, FloatArray]) -> None:
    """Move `rows` along the straight lines to `goal`, in place: from the nearer end, so that both ends are exact.

    room: two arrays of their shape and of a type at least as wide as float32, to calculate in.
    """
    a, b = room
    widen(rows, a)
    widen(goal, b)
    near, far, share = (a, b, strength) if strength < 0.5 else (b, a, strength - 1.0)
    np.subtract(b, a, out=far)
    far *= far.dtype.type(share)
    far += near
    np.copyto(rows, far, casting="same_kind")


def widen(x: FloatArray, out: FloatArray) -> None:
    """Copy x into `out`, of a type at least as wide; exact."""
    if x.dtype != np.float16 or out.dtype != np.float32 or not is_finite(x):
        np.copyto(out, x)
        return
    # numpy converts float16 one by one, which takes six times as long. Here the sign goes to the top, exponent and
    # fraction to where float32 has theirs (its exponents stand for 112 less), and what the sign left behind is cleared.
    bits = out.view(np.int32)
    np.copyto(bits, x.view(np.uint16))
    np.left_shift(bits, 16, out=bits)
    np.right_shift(bits, 3, out=bits)
    np.bitwise_and(bits, -0x70000001, out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)


def _room(x: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """What a function calculates in, again and again: memory that is new each time costs more than the calculation."""
    return np.empty(min(x.size, max(BATCH_VALUES, x.shape[-1])), dtype=dtype)


def is_finite(x: FloatArray) -> bool:
    """Whether all values of a floating type are finite numbers."""
    flat = x.reshape(-1)
    return all(_is_finite(flat[begin : begin + BATCH_VALUES]) for begin in range(0, flat.size, BATCH_VALUES))


def _is_finite(x: FloatArray) -> bool:
    # In 16 bits an exponent of ones means infinity or NaN; asking the bits is five times faster.
    ones = {"bfloat16": 0x7F80, "float16": 0x7C00}.get(x.dtype.name)
    return bool(np.isfinite(x).all()) if ones is None else int((x.view(np.uint16) & 0x7FFF).max()) < ones


# What is too large becomes infinite; whoever sends the rows looks whether they are finite.
@np.errstate(over="ignore", invalid="ignore")
def _changed(
    x: FloatArray,
    mask: RowMask,
    dims: int,
    select: str,
    rng: BitGenerator,
    change: Callable[[FloatArray], FloatArray],
    out: FloatArray | None,
) -> FloatArray:
    """x with `change` applied to the selected coordinates of the masked rows."""
    width = x.shape[-1]
    if not 1 <= dims <= width:
        raise ValueError(f"dims {dims} is not in [1, {width}]")
    if mask.shape != x.shape[:-1] or mask.dtype != np.bool_:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, not bool {x.shape[:-1]}")
    if select not in ("first", "random", "top"):
        raise ValueError(f"select {select!r} is not one of first, random, top")
    # Sorted random numbers are a random order.
    columns = np.argsort(rng.random_raw(width), kind="stable")[:dims] if select == "random" else None
    if out is None:
        out = x.copy()
    elif out is not x:
        out[...] = x
    rows = out.reshape(-1, width)
    chosen = np.flatnonzero(mask)
    many = max(1, BATCH_VALUES // width)
    for begin in range(0, len(chosen), many):
        some = chosen[begin : begin + many]
        if dims == width or select == "first":
            # Neighbours need no copy.
            where = slice(some[0], some[-1] + 1) if some[-1] - some[0] + 1 == len(some) else some
            rows[where, :dims] = change(rows[where, :dims])
        elif columns is not None:
            rows[some[:, None], columns] = change(rows[some[:, None], columns])
        else:
            size = np.abs(rows[some].astype(np.float32))
            largest = np.argpartition(size, width - dims, axis=-1)[:, width - dims :]
            rows[some[:, None], largest] = change(rows[some[:, None], largest])
    return out
