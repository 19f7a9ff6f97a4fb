"""ECO's corruption functions: pure functions on embedding rows (arXiv:2406.07933).

Each takes x (..., T, D), a bool mask (..., T) of the rows to change, how many coordinates to touch
(`dims`) and which (`select`):
    first   coordinates 0..dims-1
    random  one random set of `dims` coordinates, the same for all rows of the call
    top     per row, the `dims` coordinates of largest absolute value
Each returns a new tensor of x's shape, dtype and device; x is never modified, and rows outside the
mask and coordinates not selected are bit-identical. Raises ValueError when dims is not in [1, D], the
mask doesn't fit, or sigma is negative or not finite. The paper's reorderings are left out: its code
permutes the token axis of the whole sequence, masked or not, so its figures describe something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor


def add_noise(x: Tensor, mask: Tensor, *, dims: int, select: str, sigma: float, rng: Generator) -> Tensor:
    """Add N(0, sigma²); sigma is absolute, in units of x. sigma 0 is the identity."""
    wide = torch.promote_types(x.dtype, torch.float32)

    def change(values: Tensor) -> Tensor:
        return (values.to(wide) + _gaussian(values, sigma, rng)).to(x.dtype)

    return _changed(x, mask, dims, select, rng, change)


def set_noise(x: Tensor, mask: Tensor, *, dims: int, select: str, sigma: float, rng: Generator) -> Tensor:
    """Overwrite with N(0, sigma²). Rows outside the mask are kept (the paper's code zeroes them)."""
    return _changed(x, mask, dims, select, rng, lambda values: _gaussian(values, sigma, rng).to(x.dtype))


def zero_out(x: Tensor, mask: Tensor, *, dims: int, select: str, rng: Generator) -> Tensor:
    """Set to zero."""
    return _changed(x, mask, dims, select, rng, torch.zeros_like)


def flip_sign(x: Tensor, mask: Tensor, *, dims: int, select: str, rng: Generator) -> Tensor:
    """Multiply by -1."""
    return _changed(x, mask, dims, select, rng, torch.neg)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "noise": add_noise,
    "set-noise": set_noise,
    "zero": zero_out,
    "flip": flip_sign,
}


def _gaussian(like: Tensor, sigma: float, rng: Generator) -> Tensor:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma {sigma} is not a finite number >= 0")
    # Drawn where the generator lives, so that one seed means one noise on every device.
    return torch.randn(like.shape, generator=rng, device=rng.device).to(like.device).mul_(sigma)


def _changed(
    x: Tensor, mask: Tensor, dims: int, select: str, rng: Generator, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """A copy of x with `change` applied to the selected coordinates of the masked rows."""
    width = x.shape[-1]
    if not 1 <= dims <= width:
        raise ValueError(f"dims {dims} is not in [1, {width}]")
    if mask.shape != x.shape[:-1] or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, not torch.bool {tuple(x.shape[:-1])}")
    rows = x[mask]
    if select == "first":
        rows[:, :dims] = change(rows[:, :dims])
    elif select == "random":
        columns = torch.randperm(width, generator=rng, device=rng.device)[:dims].to(x.device)
        rows[:, columns] = change(rows[:, columns])
    elif select == "top":
        largest = rows.abs().topk(dims, dim=-1).indices
        rows = rows.scatter(-1, largest, change(rows.gather(-1, largest)))
    else:
        raise ValueError(f"select {select!r} is not one of first, random, top")
    out = x.clone()
    out[mask] = rows
    return out
