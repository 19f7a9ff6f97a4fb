"""Zeroth-order search for one number of a policy: no weights, no gradients, a handful of measurements.

ECO chooses σ by central differences, g = (d(σ+μ) - d(σ-μ)) / 2μ and σ ← σ - ηg (arXiv:2406.07933, section
3.3). Measured on real models d is flat over decades of σ, falls off a cliff, and is flat again, so that
a gradient at a bad start says nothing. Here the first measurements are spread over the whole axis, the
next ones go where the values change most, and the rest are central differences around the best. All of it
happens in the axis's own coordinate, which is logarithmic for scales: a difference at a bound is one-sided
and divided by the distance that was really there (the released script divides by 2μ everywhere), and η
comes from the curvature of the same three points.

Knows nothing of policies or servers. A search is a generator that yields where to measure and is sent what
was measured, so that the caller may measure as it likes, take values from a log, or stop half-way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import pairwise

LEAST_BUDGET = 4
COARSE_SHARE = 0.4
SPLIT_SHARE = 0.2
# Neighbours closer than this share of the axis tell no more: a third of a 40-point grid's spacing.
RESOLUTION = 1 / 120


@dataclass(frozen=True)
class Axis:
    """One number from `low` to `high`, both included. log: equal ratios count alike (then low > 0)."""

    name: str
    low: float
    high: float
    log: bool = True
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self.name}: no axis from {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.name}: a logarithmic axis can't begin at {self.low}")

    def at(self, u: float) -> float:
        """The value at u in [0, 1]; beyond it, the bound."""
        u = min(max(u, 0.0), 1.0)
        if u in (0.0, 1.0):
            return self.low if u == 0 else self.high
        if self.log:
            x = math.exp(math.log(self.low) * (1 - u) + math.log(self.high) * u)
        else:
            x = self.low * (1 - u) + self.high * u
        # Four digits are finer than any policy needs, and can be copied into one.
        return float(round(x)) if self.integer else float(f"{x:.4g}")

    def place(self, x: float) -> float:
        """The u of a value. Raises ValueError outside the axis."""
        if not self.low <= x <= self.high:
            raise ValueError(f"{self.name} {x} is not in [{self.low}, {self.high}]")
        if self.log:
            return math.log(x / self.low) / math.log(self.high / self.low)
        return (x - self.low) / (self.high - self.low)

    def grid(self, points: int) -> list[float]:
        """`points` values evenly spread, bounds included; fewer where integers coincide."""
        if points < 2:
            raise ValueError(f"{self.name}: a grid has at least 2 points, not {points}")
        return list(dict.fromkeys(self.at(i / (points - 1)) for i in range(points)))


@dataclass(frozen=True)
class Measured:
    """An objective, lower is better. draws: the same over resamples of its sample, which must be the same
    resamples at every point, so that two points' difference has an error of its own; () if it is exact."""

    value: float
    draws: tuple[float, ...] = ()


@dataclass(frozen=True)
class Found:
    """The best point seen. tied: the span of points around it that the sample can't tell from it."""

    x: float
    measured: Measured
    tied: tuple[float, float]
    seen: Mapping[float, Measured]


Search = Generator[float, Measured, Found]


def minimise(axis: Axis, *, budget: int, seen: Mapping[float, Measured] | None = None) -> Search:
    """Search for the lowest objective on `axis` with at most `budget` measurements, none of them twice.

    Yields a value, is sent its Measured, returns Found. seen: points of the axis that are known already,
    free of charge. The same answers always lead to the same questions. Raises ValueError when the budget
    is under LEAST_BUDGET or a measured value is not finite.
    """
    if budget < LEAST_BUDGET:
        raise ValueError(f"{axis.name}: {budget} measurements are too few, give at least {LEAST_BUDGET}")
    known = dict(seen or {})
    left = budget
    queue = axis.grid(max(3, round(budget * COARSE_SHARE)))
    splits = round(budget * SPLIT_SHARE)
    while left:
        queue = [x for x in dict.fromkeys(queue) if x not in known]
        if not queue:
            queue = _next(axis, known, split=splits > 0)
            splits -= 1
            if not queue:
                break
        x = queue.pop(0)
        measured = yield x
        if not math.isfinite(measured.value):
            raise ValueError(f"{axis.name} {x}: the objective is {measured.value}")
        known[x] = measured
        left -= 1
    return _found(axis, known)


def solve(search: Search, measure: Callable[[float], Measured]) -> Found:
    """Run a search to its end."""
    try:
        x = next(search)
        while True:
            x = search.send(measure(x))
    except StopIteration as end:
        found: Found = end.value
        return found


def central_difference(
    left: tuple[float, float], centre: tuple[float, float], right: tuple[float, float]
) -> tuple[float, float]:
    """Slope and curvature at the centre of three points (u, value); the sides needn't be equally far.

    Where a side is the centre itself (at a bound), the slope is the one-sided difference over the distance
    to the other, and the curvature is 0. Raises ValueError when all three coincide.
    """
    (a, at_a), (c, at_c), (b, at_b) = left, centre, right
    if a == b:
        raise ValueError("a difference needs two points")
    if c in (a, b):
        return (at_b - at_a) / (b - a), 0.0
    before, after = (at_c - at_a) / (c - a), (at_b - at_c) / (b - c)
    curvature = 2 * (after - before) / (b - a)
    # The slope of the parabola through the three; for equal distances it is (d(+μ) - d(-μ)) / 2μ.
    return (before * (b - c) + after * (c - a)) / (b - a), curvature


def _next(axis: Axis, known: Mapping[float, Measured], *, split: bool) -> list[float]:
    """Where to measure next; empty when there is nothing left that could tell."""
    if split:
        return _split(axis, known)
    return _around(axis, known) or _split(axis, known)


def _around(axis: Axis, known: Mapping[float, Measured]) -> list[float]:
    """The sides of the next central difference around the best point, or the step that the last one asks for."""
    order = sorted(known)
    best = min(order, key=lambda x: known[x].value)
    i = order.index(best)
    u = axis.place(best)
    low = order[i - 1] if i else best
    high = order[i + 1] if i + 1 < len(order) else best
    reach = max(u - axis.place(low), axis.place(high) - u)
    if reach < 2 * RESOLUTION or _alike(known, (low, best, high)):
        return []
    slope, curvature = central_difference(*((axis.place(x), known[x].value) for x in (low, best, high)))
    mu = reach / 2
    sides = [axis.at(u - mu), axis.at(u + mu)]
    if curvature > 0:
        step = axis.at(u - slope / curvature)
        if _apart(axis, step, known) and abs(axis.place(step) - u) < mu:
            # The parabola's lowest point lies on one side of the best; the other side is measured if it fails.
            return [step]
    return [x for x in sides if _apart(axis, x, known)]


def _split(axis: Axis, known: Mapping[float, Measured]) -> list[float]:
    """The middle of the interval where the lowest value could hide, if slopes are no steeper than beside it."""
    order = sorted(known)
    gaps = [axis.place(b) - axis.place(a) for a, b in pairwise(order)]
    slopes = [abs(known[a].value - known[b].value) / gap for (a, b), gap in zip(pairwise(order), gaps, strict=True)]
    hopes = []
    for i, (a, b) in enumerate(pairwise(order)):
        middle = axis.at((axis.place(a) + axis.place(b)) / 2)
        if gaps[i] >= 2 * RESOLUTION and _apart(axis, middle, known):
            steepest = max(slopes[max(i - 1, 0) : i + 2])
            hopes.append((min(known[a].value, known[b].value) - steepest * gaps[i] / 2, -gaps[i], middle))
    return [min(hopes)[2]] if hopes else []


def _apart(axis: Axis, x: float, known: Mapping[float, Measured]) -> bool:
    return x not in known and all(abs(axis.place(x) - axis.place(other)) >= RESOLUTION for other in known)


def _alike(known: Mapping[float, Measured], points: tuple[float, ...]) -> bool:
    """Whether the sample can't tell these points apart, so that their slope would be noise."""
    best = min(points, key=lambda x: known[x].value)
    return bool(known[best].draws) and all(
        known[x].value - known[best].value <= _error(known[x], known[best]) for x in points
    )


def _error(a: Measured, b: Measured) -> float:
    """Standard error of a's value less b's, by their common resamples; 0 for exact values."""
    gaps = [x - y for x, y in zip(a.draws, b.draws, strict=True)]
    if len(gaps) < 2:
        return 0.0
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))


def _found(axis: Axis, known: Mapping[float, Measured]) -> Found:
    order = sorted(known)
    best = min(order, key=lambda x: known[x].value)
    low = high = order.index(best)
    while low > 0 and _alike(known, (order[low - 1], best)):
        low -= 1
    while high + 1 < len(order) and _alike(known, (order[high + 1], best)):
        high += 1
    return Found(best, known[best], (order[low], order[high]), {x: known[x] for x in order})
