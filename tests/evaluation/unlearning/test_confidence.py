from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from lethe.evaluation.unlearning.confidence import Rate, bootstrap, share, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 217), (1, 1), (3, 87), (98, 100), (400, 400), (9996, 10000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_wilson_is_scipys(successes: int, n: int, confidence: float) -> None:
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = wilson(successes, n, confidence)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


def test_nothing_observed_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no observations"):
        share(0, 0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 3, 0.9), (4, 3, 0.9), (1, 3, 1.0), (1, 3, 0.0)])
def test_impossible_counts_are_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        wilson(successes, n, confidence)


def test_share_carries_its_interval() -> None:
    rate = share(98, 100)
    assert rate.as_dict() == {"value": 0.98, "low": rate.low, "high": rate.high, "n": 100}
    assert (rate.low, rate.high) == wilson(98, 100)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        made = bootstrap(generator.exponential(2.0, 80).tolist(), seed)
        covered += made.low <= 2.0 <= made.high
    assert 50 <= covered <= 60


def test_bootstrap_is_repeatable_and_exact_for_constants() -> None:
    values = np.random.default_rng(2).random(40).tolist()
    assert bootstrap(values, 7) == bootstrap(values, 7) != bootstrap(values, 8)
    assert bootstrap([0.25, 0.25], 0) == Rate(0.25, 0.25, 0.25, 2)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_bootstrap_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap(values, 0)
