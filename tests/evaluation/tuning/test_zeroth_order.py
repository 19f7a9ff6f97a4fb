"""The search against a grid twice as dear, on the shapes that objectives really have."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from lethe.evaluation.tuning.zeroth_order import Axis, Measured, central_difference, minimise, solve

SIGMA = Axis("sigma", 0.1, 1000)
BUDGET = 20

Objective = Callable[[float], float]


def recall(u: float, edge: float, width: float) -> float:
    """Recall falls from 1 to nothing around `edge`, over a share `width` of the axis."""
    return 1 / (1 + math.exp(min((u - edge) / width, 700)))


# Each: place of the edge → objective over u in [0, 1].
SHAPES: dict[str, Callable[[float], Objective]] = {
    "cliff": lambda edge: lambda u: 1.0 if u < edge else 0.3,
    "cliff, then slowly worse": lambda edge: lambda u: 1.0 if u < edge else 0.3 + 0.5 * (u - edge),
    "recall against 0.15, and garble": lambda edge: lambda u: abs(recall(u, edge, 0.05) - 0.15) + 0.1 + 0.2 * u,
    "smooth": lambda edge: lambda u: 0.05 + (u - edge) ** 2,
    "corner": lambda edge: lambda u: 0.1 + abs(u - edge),
    "lowest at the lower bound": lambda edge: lambda u: 0.2 + u * edge,
    "lowest at the upper bound": lambda edge: lambda u: 0.2 + (1 - u) * edge,
    "flat": lambda edge: lambda u: 0.4,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [SIGMA, Axis("strength", 0.05, 2, log=False)], ids=lambda axis: axis.name)
def test_twenty_evaluations_are_within_ten_percent_of_a_grid_of_forty(shape: str, axis: Axis) -> None:
    for edge in (0.07, 0.2, 0.33, 0.46, 0.5, 0.61, 0.77, 0.85, 0.93):
        objective = SHAPES[shape](edge)
        asked: list[float] = []

        def measure(x: float, f: Objective = objective, asked: list[float] = asked) -> Measured:
            asked.append(x)
            return Measured(f(axis.place(x)))

        found = solve(minimise(axis, budget=BUDGET), measure)
        grid = min(objective(axis.place(x)) for x in axis.grid(40))
        assert found.measured.value <= 1.1 * grid, edge
        assert len(asked) <= BUDGET and len(set(asked)) == len(asked)
        assert found.measured.value == min(m.value for m in found.seen.values())


def test_noise_of_a_finite_sample() -> None:
    """Where every candidate has noise of its own, 19 of 20 runs keep the 10 %."""
    good = 0
    for seed in range(40):
        edge = 0.1 + 0.8 * random.Random(seed).random()

        def objective(x: float, edge: float = edge, seed: int = seed) -> Measured:
            u = SIGMA.place(x)
            base = abs(recall(u, edge, 0.05) - 0.15) + 0.3 + 0.2 * u
            own = random.Random(f"{seed} {x}")
            value = base + own.gauss(0, 0.01)
            return Measured(value, tuple(value + own.gauss(0, 0.01) for _ in range(32)))

        found = solve(minimise(SIGMA, budget=BUDGET), objective)
        good += found.measured.value <= 1.1 * min(objective(x).value for x in SIGMA.grid(40))
    assert good >= 38


def test_a_narrow_valley_behind_a_cliff_is_found() -> None:
    """Values beside the valley don't show it: the search has to look where they change most."""

    def valley(u: float) -> float:
        return 1.0 if u < 0.55 else 0.2 + 4 * (u - 0.55) if u < 0.65 else 0.6

    found = solve(minimise(SIGMA, budget=BUDGET), lambda x: Measured(valley(SIGMA.place(x))))
    assert found.measured.value < 0.3


def test_integers_are_asked_once_each_and_the_search_ends_early() -> None:
    dims = Axis("dims", 1, 6, integer=True)
    asked: list[float] = []

    def measure(x: float) -> Measured:
        asked.append(x)
        return Measured(abs(x - 4))

    found = solve(minimise(dims, budget=BUDGET), measure)
    assert found.x == 4 and sorted(asked) == sorted(set(asked)) and set(asked) <= {1, 2, 3, 4, 5, 6}


def test_known_points_are_free() -> None:
    asked: list[float] = []

    def measure(x: float) -> Measured:
        asked.append(x)
        return Measured(1.0)

    found = solve(minimise(SIGMA, budget=6, seen={10.0: Measured(0.5)}), measure)
    assert found.x == 10.0 and 10.0 not in asked and len(asked) == 6


def test_the_same_answers_lead_to_the_same_questions() -> None:
    def run() -> list[float]:
        found = solve(minimise(SIGMA, budget=BUDGET), lambda x: Measured(abs(math.log10(x) - 1.3)))
        return list(found.seen)

    assert run() == run()


def test_points_that_the_sample_cannot_tell_apart_are_named() -> None:
    draws = random.Random(0)

    def measure(x: float) -> Measured:
        value = 1.0 if x < 5 else 0.5 + 0.001 * math.log10(x)
        return Measured(value, tuple(value + draws.gauss(0, 0.02) for _ in range(64)))

    low, high = solve(minimise(SIGMA, budget=BUDGET), measure).tied
    assert low <= 10 and high == 1000
    exact = solve(minimise(SIGMA, budget=BUDGET), lambda x: Measured(abs(math.log10(x) - 1))).tied
    assert exact[0] == exact[1]


def test_central_differences() -> None:
    def parabola(u: float) -> float:
        return 3 * (u - 0.4) ** 2

    def at(u: float) -> tuple[float, float]:
        return u, parabola(u)

    slope, curvature = central_difference(at(0.4), at(0.5), at(0.6))
    assert slope == pytest.approx(0.6) and curvature == pytest.approx(6)
    # Sides that aren't equally far, as a bound or an integer makes them: still the parabola's own slope.
    slope, curvature = central_difference(at(0.45), at(0.5), at(0.7))
    assert slope == pytest.approx(0.6) and curvature == pytest.approx(6)
    # At a bound the distance is the true one, not twice the step.
    slope, curvature = central_difference(at(0.5), at(0.5), at(0.7))
    assert slope == pytest.approx((parabola(0.7) - parabola(0.5)) / 0.2) and curvature == 0
    with pytest.raises(ValueError, match="two points"):
        central_difference(at(0.5), at(0.5), at(0.5))


def test_an_axis_is_even_in_its_own_measure() -> None:
    assert SIGMA.grid(5) == [0.1, 1, 10, 100, 1000]
    assert Axis("soft", 0, 16, log=False).grid(5) == [0, 4, 8, 12, 16]
    assert Axis("dims", 1, 4, integer=True).grid(40) == [1, 2, 3, 4]
    assert [SIGMA.at(u) for u in (-1, 2)] == [0.1, 1000]
    assert SIGMA.place(SIGMA.at(0.3)) == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("sigma", 0, 10), "sigma: a logarithmic axis can't begin at 0"),
        (lambda: Axis("soft", 5, 5, log=False), "soft: no axis from 5 to 5"),
        (lambda: Axis("soft", 0, math.inf, log=False), "no axis"),
        (lambda: SIGMA.place(2000), r"sigma 2000 is not in \[0.1, 1000\]"),
        (lambda: SIGMA.grid(1), "at least 2 points"),
        (lambda: next(minimise(SIGMA, budget=3)), "3 measurements are too few"),
        (lambda: solve(minimise(SIGMA, budget=5), lambda x: Measured(math.nan)), "sigma 0.1: the objective is nan"),
    ],
)
def test_what_cannot_be_searched_is_an_error(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
