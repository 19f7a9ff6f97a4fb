"""Zeroth-order search for one parameter of a policy: no weights, no gradients, a handful of measurements.

ECO chooses σ by central differences, g = (d(σ+μ) - d(σ-μ)) / 2μ and σ ← σ - ηg (arXiv:2406.07933, section 3.3).
Measured on real models, d is flat over decades of σ, falls steeply, and is flat again, so a gradient at a bad start
carries no information. This search therefore works in three steps: an even coarse grid over the whole axis; then the
intervals where the values change most; then central differences around the best point.

All steps use the axis's own coordinate, which is logarithmic for scales. A difference at a bound is one-sided and
divided by the actual distance (the released script always divides by 2μ). η comes from the curvature of the same three
points.

Knows neither policies nor servers. A search is a generator: it yields the point to measure and is sent the
measurement, so that the caller may measure as it likes, reuse logged values, or stop early.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import pairwise

# Measurements of one search: three for a coarse grid and one around its best point.
MIN_BUDGET = 4
# Shares of the budget for the coarse grid and for splitting intervals; the rest goes to central differences.
COARSE_SHARE = 0.4
SPLIT_SHARE = 0.2
# Points closer than this share of the axis count as equal: a third of a 40-point grid's spacing.
RESOLUTION = 1 / 120


@dataclass(frozen=True)
class Axis:
    """The range of one parameter, from `low` to `high`, both included.

    log: the coordinate is logarithmic (then low > 0). integer: values are rounded to integers. Raises ValueError for an
    empty or infinite range.
    """

    name: str
    low: float
    high: float
    log: bool = True
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self.name}: invalid range from {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.name}: a logarithmic axis can't begin at {self.low}")

    def value_at(self, u: float) -> float:
        """Return the value at coordinate u in [0, 1]; beyond it, the nearer bound."""
        u = min(max(u, 0.0), 1.0)
        if u in (0.0, 1.0):
            return self.low if u == 0 else self.high
        if self.log:
            x = math.exp(math.log(self.low) * (1 - u) + math.log(self.high) * u)
        else:
            x = self.low * (1 - u) + self.high * u
        # Four digits are finer than any policy needs, and can be copied into one.
        return float(round(x)) if self.integer else float(f"{x:.4g}")

    def coordinate(self, x: float) -> float:
        """Return the coordinate u of a value. Raises ValueError outside the axis."""
        if not self.low <= x <= self.high:
            raise ValueError(f"{self.name} {x} is not in [{self.low}, {self.high}]")
        if self.log:
            return math.log(x / self.low) / math.log(self.high / self.low)
        return (x - self.low) / (self.high - self.low)

    def grid(self, points: int) -> list[float]:
        """Return `points` evenly spaced values, bounds included; fewer where integers coincide."""
        if points < 2:
            raise ValueError(f"{self.name}: a grid has at least 2 points, not {points}")
        return list(dict.fromkeys(self.value_at(i / (points - 1)) for i in range(points)))


@dataclass(frozen=True)
class Measurement:
    """A measured objective; lower is better.

    draws: the objective over bootstrap resamples. All points must use the same resamples, so that the difference of two
    points has an error of its own. () if the value is exact.
    """

    value: float
    draws: tuple[float, ...] = ()


@dataclass(frozen=True)
class Minimum:
    """The best measured point. tied: the range of points around it that the sample can't distinguish from it."""

    x: float
    measured: Measurement
    tied: tuple[float, float]


MinimumSearch = Generator[float, Measurement, Minimum]


def minimise(axis: Axis, *, budget: int, seen: Mapping[float, Measurement] | None = None) -> MinimumSearch:
    """Search for the lowest objective on `axis` with at most `budget` measurements, none of them twice.

    Yields a value, is sent its Measurement, returns the Minimum. seen: measurements made before, not counted in the
    budget. The search is deterministic. Raises ValueError if the budget is below MIN_BUDGET or a measured value is not
    finite.
    """
    if budget < MIN_BUDGET:
        raise ValueError(f"{axis.name}: {budget} measurements are too few, give at least {MIN_BUDGET}")
    measured = dict(seen or {})
    remaining = budget
    queue = axis.grid(max(3, round(budget * COARSE_SHARE)))
    splits = round(budget * SPLIT_SHARE)
    while remaining:
        queue = [x for x in dict.fromkeys(queue) if x not in measured]
        if not queue:
            queue = _next_points(axis, measured, split=splits > 0)
            splits -= 1
            if not queue:
                break
        x = queue.pop(0)
        measurement = yield x
        if not math.isfinite(measurement.value):
            raise ValueError(f"{axis.name} {x}: the objective is {measurement.value}")
        measured[x] = measurement
        remaining -= 1
    return _minimum(measured)


def central_difference(
    left: tuple[float, float], centre: tuple[float, float], right: tuple[float, float]
) -> tuple[float, float]:
    """Return slope and curvature at the centre of three points (u, value); the distances may differ.

    If one side is the centre itself (at a bound), the slope is the one-sided difference over the distance to the other
    side, and the curvature is 0. Otherwise the slope is that of the parabola through the three points; for equal
    distances it is (d(+μ) - d(-μ)) / 2μ. Raises ValueError if all three coincide.
    """
    (a, at_a), (c, at_c), (b, at_b) = left, centre, right
    if a == b:
        raise ValueError("a difference needs two points")
    if c in (a, b):
        return (at_b - at_a) / (b - a), 0.0
    slope_left, slope_right = (at_c - at_a) / (c - a), (at_b - at_c) / (b - c)
    curvature = 2 * (slope_right - slope_left) / (b - a)
    return (slope_left * (b - c) + slope_right * (c - a)) / (b - a), curvature


def _next_points(axis: Axis, measured: Mapping[float, Measurement], *, split: bool) -> list[float]:
    """The points to measure next; empty if no further point is useful."""
    if split:
        return _split_interval(axis, measured)
    return _points_around_best(axis, measured) or _split_interval(axis, measured)


def _points_around_best(axis: Axis, measured: Mapping[float, Measurement]) -> list[float]:
    """The sides of the next central difference around the best point, or the step that the last difference suggests."""
    order = sorted(measured)
    best = min(order, key=lambda x: measured[x].value)
    i = order.index(best)
    u = axis.coordinate(best)
    low = order[i - 1] if i else best
    high = order[i + 1] if i + 1 < len(order) else best
    reach = max(u - axis.coordinate(low), axis.coordinate(high) - u)
    if reach < 2 * RESOLUTION or _indistinguishable(measured, (low, best, high)):
        return []
    slope, curvature = central_difference(*((axis.coordinate(x), measured[x].value) for x in (low, best, high)))
    mu = reach / 2
    sides = [axis.value_at(u - mu), axis.value_at(u + mu)]
    if curvature > 0:
        step = axis.value_at(u - slope / curvature)
        if _is_new_point(axis, step, measured) and abs(axis.coordinate(step) - u) < mu:
            # The parabola's lowest point lies on one side of the best; the other side is measured if it fails.
            return [step]
    return [x for x in sides if _is_new_point(axis, x, measured)]


def _split_interval(axis: Axis, measured: Mapping[float, Measurement]) -> list[float]:
    """The middle of the interval with the lowest possible value, assuming slopes no steeper than in its neighbours."""
    order = sorted(measured)
    gaps = [axis.coordinate(b) - axis.coordinate(a) for a, b in pairwise(order)]
    slopes = [
        abs(measured[a].value - measured[b].value) / gap for (a, b), gap in zip(pairwise(order), gaps, strict=True)
    ]
    candidates = []
    for i, (a, b) in enumerate(pairwise(order)):
        middle = axis.value_at((axis.coordinate(a) + axis.coordinate(b)) / 2)
        if gaps[i] >= 2 * RESOLUTION and _is_new_point(axis, middle, measured):
            steepest = max(slopes[max(i - 1, 0) : i + 2])
            lower_bound = min(measured[a].value, measured[b].value) - steepest * gaps[i] / 2
            candidates.append((lower_bound, -gaps[i], middle))
    return [min(candidates)[2]] if candidates else []


def _is_new_point(axis: Axis, x: float, measured: Mapping[float, Measurement]) -> bool:
    return x not in measured and all(
        abs(axis.coordinate(x) - axis.coordinate(other)) >= RESOLUTION for other in measured
    )


def _indistinguishable(measured: Mapping[float, Measurement], points: tuple[float, ...]) -> bool:
    """Whether all points are within one standard error of the best, so that their slope would be noise."""
    best = min(points, key=lambda x: measured[x].value)
    return bool(measured[best].draws) and all(
        measured[x].value - measured[best].value <= _difference_error(measured[x], measured[best]) for x in points
    )


def _difference_error(a: Measurement, b: Measurement) -> float:
    """Standard error of a's value minus b's, by their common resamples; 0 for exact values."""
    differences = [x - y for x, y in zip(a.draws, b.draws, strict=True)]
    if len(differences) < 2:
        return 0.0
    mean = sum(differences) / len(differences)
    return math.sqrt(sum((difference - mean) ** 2 for difference in differences) / (len(differences) - 1))


def _minimum(measured: Mapping[float, Measurement]) -> Minimum:
    order = sorted(measured)
    best = min(order, key=lambda x: measured[x].value)
    low = high = order.index(best)
    while low > 0 and _indistinguishable(measured, (order[low - 1], best)):
        low -= 1
    while high + 1 < len(order) and _indistinguishable(measured, (order[high + 1], best)):
        high += 1
    return Minimum(best, measured[best], (order[low], order[high]))
