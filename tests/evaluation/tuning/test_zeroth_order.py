"""The search compared with a grid of twice as many points, on shapes of measured objectives."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from lethe.evaluation.tuning.zeroth_order import (
    Axis,
    Measurement,
    Minimum,
    MinimumSearch,
    central_difference,
    minimise,
)

SIGMA = Axis("sigma", 0.1, 1000)
BUDGET = 20

Objective = Callable[[float], float]


def run_search(search: MinimumSearch, measure: Callable[[float], Measurement]) -> Minimum:
    """Run a search to its end."""
    try:
        x = next(search)
        while True:
            x = search.send(measure(x))
    except StopIteration as end:
        minimum: Minimum = end.value
        return minimum


def recall(u: float, edge: float, width: float) -> float:
    """Recall that falls from 1 to 0 around `edge`, over a share `width` of the axis."""
    return 1 / (1 + math.exp(min((u - edge) / width, 700)))


# Each: position of the edge → objective over u in [0, 1].
SHAPES: dict[str, Callable[[float], Objective]] = {
    "cliff": lambda edge: lambda u: 1.0 if u < edge else 0.3,
    "cliff, then slowly worse": lambda edge: lambda u: 1.0 if u < edge else 0.3 + 0.5 * (u - edge),
    "recall compared with 0.15, plus garbled text": lambda edge: (
        lambda u: abs(recall(u, edge, 0.05) - 0.15) + 0.1 + 0.2 * u
    ),
    "smooth": lambda edge: lambda u: 0.05 + (u - edge) ** 2,
    "corner": lambda edge: lambda u: 0.1 + abs(u - edge),
    "lowest at the lower bound": lambda edge: lambda u: 0.2 + u * edge,
    "lowest at the upper bound": lambda edge: lambda u: 0.2 + (1 - u) * edge,
    "flat": lambda edge: lambda u: 0.4,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [SIGMA, Axis("strength", 0.05, 2, log=False)], ids=lambda axis: axis.name)
def test_twenty_points_are_within_ten_percent_of_a_grid_of_forty(shape: str, axis: Axis) -> None:
    for edge in (0.07, 0.2, 0.33, 0.46, 0.5, 0.61, 0.77, 0.85, 0.93):
        objective = SHAPES[shape](edge)
        measured: list[float] = []

        def measure(x: float, f: Objective = objective, measured: list[float] = measured) -> Measurement:
            measured.append(x)
            return Measurement(f(axis.coordinate(x)))

        minimum = run_search(minimise(axis, budget=BUDGET), measure)
        grid = min(objective(axis.coordinate(x)) for x in axis.grid(40))
        assert minimum.measured.value <= 1.1 * grid, edge
        assert len(measured) <= BUDGET and len(set(measured)) == len(measured)
        assert minimum.measured.value == min(objective(axis.coordinate(x)) for x in measured)


def test_noise_of_a_finite_sample_is_tolerated() -> None:
    """Where every candidate has its own noise, 19 of 20 runs stay within 10 % of the grid."""
    good = 0
    for seed in range(40):
        edge = 0.1 + 0.8 * random.Random(seed).random()

        def objective(x: float, edge: float = edge, seed: int = seed) -> Measurement:
            u = SIGMA.coordinate(x)
            base = abs(recall(u, edge, 0.05) - 0.15) + 0.3 + 0.2 * u
            noise = random.Random(f"{seed} {x}")
            value = base + noise.gauss(0, 0.01)
            return Measurement(value, tuple(value + noise.gauss(0, 0.01) for _ in range(32)))

        minimum = run_search(minimise(SIGMA, budget=BUDGET), objective)
        good += minimum.measured.value <= 1.1 * min(objective(x).value for x in SIGMA.grid(40))
    assert good >= 38


def test_a_narrow_valley_behind_a_cliff_is_found() -> None:
    """Values beside the valley don't show it: the search has to split the interval where they change most."""

    def valley(u: float) -> float:
        return 1.0 if u < 0.55 else 0.2 + 4 * (u - 0.55) if u < 0.65 else 0.6

    minimum = run_search(minimise(SIGMA, budget=BUDGET), lambda x: Measurement(valley(SIGMA.coordinate(x))))
    assert minimum.measured.value < 0.3


def test_integers_are_measured_once_and_the_search_ends_early() -> None:
    dims = Axis("dims", 1, 6, integer=True)
    measured: list[float] = []

    def measure(x: float) -> Measurement:
        measured.append(x)
        return Measurement(abs(x - 4))

    minimum = run_search(minimise(dims, budget=BUDGET), measure)
    assert minimum.x == 4 and sorted(measured) == sorted(set(measured)) and set(measured) <= {1, 2, 3, 4, 5, 6}


def test_earlier_measurements_are_not_counted() -> None:
    measured: list[float] = []

    def measure(x: float) -> Measurement:
        measured.append(x)
        return Measurement(1.0)

    minimum = run_search(minimise(SIGMA, budget=6, seen={10.0: Measurement(0.5)}), measure)
    assert minimum.x == 10.0 and 10.0 not in measured and len(measured) == 6


def test_the_search_is_deterministic() -> None:
    def run() -> list[float]:
        points: list[float] = []

        def measure(x: float) -> Measurement:
            points.append(x)
            return Measurement(abs(math.log10(x) - 1.3))

        run_search(minimise(SIGMA, budget=BUDGET), measure)
        return points

    assert run() == run()


def test_points_without_a_significant_difference_are_reported() -> None:
    draws = random.Random(0)

    def measure(x: float) -> Measurement:
        value = 1.0 if x < 5 else 0.5 + 0.001 * math.log10(x)
        return Measurement(value, tuple(value + draws.gauss(0, 0.02) for _ in range(64)))

    low, high = run_search(minimise(SIGMA, budget=BUDGET), measure).tied
    assert low <= 10 and high == 1000
    exact = run_search(minimise(SIGMA, budget=BUDGET), lambda x: Measurement(abs(math.log10(x) - 1))).tied
    assert exact[0] == exact[1]


def test_central_differences() -> None:
    def parabola(u: float) -> float:
        return 3 * (u - 0.4) ** 2

    def at(u: float) -> tuple[float, float]:
        return u, parabola(u)

    slope, curvature = central_difference(at(0.4), at(0.5), at(0.6))
    assert slope == pytest.approx(0.6) and curvature == pytest.approx(6)
    # Unequal distances, as bounds and integers cause them: still the parabola's slope.
    slope, curvature = central_difference(at(0.45), at(0.5), at(0.7))
    assert slope == pytest.approx(0.6) and curvature == pytest.approx(6)
    # At a bound, the divisor is the actual distance, not twice the step.
    slope, curvature = central_difference(at(0.5), at(0.5), at(0.7))
    assert slope == pytest.approx((parabola(0.7) - parabola(0.5)) / 0.2) and curvature == 0
    with pytest.raises(ValueError, match="two points"):
        central_difference(at(0.5), at(0.5), at(0.5))


def test_a_grid_is_even_in_the_coordinate_of_the_axis() -> None:
    assert SIGMA.grid(5) == [0.1, 1, 10, 100, 1000]
    assert Axis("soft", 0, 16, log=False).grid(5) == [0, 4, 8, 12, 16]
    assert Axis("dims", 1, 4, integer=True).grid(40) == [1, 2, 3, 4]
    assert [SIGMA.value_at(u) for u in (-1, 2)] == [0.1, 1000]
    assert SIGMA.coordinate(SIGMA.value_at(0.3)) == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("sigma", 0, 10), "sigma: a logarithmic axis can't begin at 0"),
        (lambda: Axis("soft", 5, 5, log=False), "soft: invalid range from 5 to 5"),
        (lambda: Axis("soft", 0, math.inf, log=False), "invalid range"),
        (lambda: SIGMA.coordinate(2000), r"sigma 2000 is not in \[0.1, 1000\]"),
        (lambda: SIGMA.grid(1), "at least 2 points"),
        (lambda: next(minimise(SIGMA, budget=3)), "3 measurements are too few"),
        (
            lambda: run_search(minimise(SIGMA, budget=5), lambda x: Measurement(math.nan)),
            "sigma 0.1: the objective is nan",
        ),
    ],
)
def test_invalid_searches_raise_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
