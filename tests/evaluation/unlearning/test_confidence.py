"""Intervals of shares and means: their coverage, their limits, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.conformal import wilson_interval
from lethe.evaluation.unlearning.confidence import Estimate, bootstrap_interval, estimate_mean, estimate_share


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 217), (1, 1), (3, 87), (98, 100), (400, 400), (9996, 10000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_share_interval_equals_the_classifiers_wilson(successes: int, n: int, confidence: float) -> None:
    estimate = estimate_share(successes, n, confidence)
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(successes, n, confidence), abs=1e-12)
    assert 0 <= estimate.low <= estimate.value == successes / n <= estimate.high <= 1


def test_share_of_no_observations_raises() -> None:
    with pytest.raises(ValueError, match="no observations"):
        estimate_share(0, 0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 3, 0.9), (4, 3, 0.9), (1, 3, 1.0), (1, 3, 0.0)])
def test_impossible_counts_and_confidences_raise(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        estimate_share(successes, n, confidence)


def test_estimate_as_dict_has_value_interval_and_count() -> None:
    estimate = estimate_share(98, 100)
    assert estimate.as_dict() == {"value": 0.98, "low": estimate.low, "high": estimate.high, "n": 100}


def test_bootstrap_covers_the_mean_at_the_stated_rate() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        estimate = estimate_mean(generator.exponential(2.0, 80).tolist(), seed)
        covered += estimate.low <= 2.0 <= estimate.high
    assert 50 <= covered <= 60


def test_bootstrap_is_repeatable_and_exact_for_constants() -> None:
    values = np.random.default_rng(2).random(40).tolist()
    assert estimate_mean(values, 7) == estimate_mean(values, 7) != estimate_mean(values, 8)
    assert estimate_mean([0.25, 0.25], 0) == Estimate(0.25, 0.25, 0.25, 2)


def test_one_value_has_an_interval_without_width() -> None:
    assert estimate_mean([0.5], 0) == Estimate(0.5, 0.5, 0.5, 1)


def test_bootstrap_resamples_each_sample_on_its_own() -> None:
    samples = [np.array([0.0, 1.0]), np.array([0.0, 10.0]), np.array([100.0])]
    low, high = bootstrap_interval(samples, lambda *parts: sum(part.mean() for part in parts), 0)
    # The extremes, 0 + 0 and 1 + 10, each have a chance of 1/16; the sample of one observation is constant.
    assert (low, high) == (100.0, 111.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_bootstrap_refuses_missing_and_infinite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate_mean(values, 0)
