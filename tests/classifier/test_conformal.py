from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier import conformal


def test_the_miss_rate_holds_on_held_out_scores(rng: np.random.Generator) -> None:
    missed = []
    for _ in range(400):
        scores = rng.beta(8, 2, size=150)
        missed.append((rng.beta(8, 2, size=200) < conformal.for_miss_rate(scores, 0.05)).mean())
    assert np.mean(missed) <= 0.055


def test_the_false_alarm_rate_holds_on_held_out_scores(rng: np.random.Generator) -> None:
    alarms = []
    for _ in range(400):
        scores = rng.beta(2, 8, size=150)
        alarms.append((rng.beta(2, 8, size=200) >= conformal.for_false_alarm_rate(scores, 0.05)).mean())
    assert np.mean(alarms) <= 0.055


@given(st.lists(st.floats(0, 1), min_size=99, max_size=150), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_thresholds_are_monotone_in_the_rate(scores: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    known = np.array(scores)
    assert conformal.for_miss_rate(known, low) <= conformal.for_miss_rate(known, high)
    assert conformal.for_false_alarm_rate(known, low) >= conformal.for_false_alarm_rate(known, high)


def test_ninety_nine_scores_are_enough_for_one_percent_and_one_less_is_not() -> None:
    assert conformal.for_miss_rate(np.linspace(0, 1, 99), 0.01) == 0
    with pytest.raises(ValueError, match="98 forget calibration scores are too few, at least 99"):
        conformal.for_miss_rate(np.linspace(0, 1, 98), 0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_must_lie_between_0_and_1(rate: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        conformal.for_miss_rate(np.zeros(10), rate)
