from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.classifier import conformal


def test_the_miss_rate_holds_on_held_out_scores(rng: np.random.Generator) -> None:
    missed = []
    for _ in range(400):
        scores = rng.beta(8, 2, size=150)
        missed.append((rng.beta(8, 2, size=200) < conformal.threshold_for_miss_rate(scores, 0.05)).mean())
    assert np.mean(missed) <= 0.055


def test_the_false_alarm_rate_holds_on_held_out_scores(rng: np.random.Generator) -> None:
    alarms = []
    for _ in range(400):
        scores = rng.beta(2, 8, size=150)
        alarms.append((rng.beta(2, 8, size=200) >= conformal.threshold_for_false_alarm_rate(scores, 0.05)).mean())
    assert np.mean(alarms) <= 0.055


@given(st.lists(st.floats(0, 1), min_size=99, max_size=150), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_thresholds_are_monotone_in_the_rate(scores: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    known = np.array(scores)
    assert conformal.threshold_for_miss_rate(known, low) <= conformal.threshold_for_miss_rate(known, high)
    assert conformal.threshold_for_false_alarm_rate(known, low) >= conformal.threshold_for_false_alarm_rate(known, high)


def test_one_percent_needs_ninety_nine_scores() -> None:
    assert conformal.threshold_for_miss_rate(np.linspace(0, 1, 99), 0.01) == 0
    with pytest.raises(ValueError, match="98 forget calibration scores are too few, at least 99"):
        conformal.threshold_for_miss_rate(np.linspace(0, 1, 98), 0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_must_lie_between_0_and_1(rate: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        conformal.threshold_for_miss_rate(np.zeros(10), rate)


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    """Held-out scores of a fit of 400 facts against 1,600 others: scores, items and groups of rewordings."""
    path = Path(__file__).parent / "data" / "calibration.npz"
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.05])
def test_random_splits_of_real_scores_keep_the_miss_rate(rate: float, real: dict[str, np.ndarray]) -> None:
    splits, rng = 600, np.random.default_rng(0)
    scores = real["forget"]
    missed = []
    for _ in range(splits):
        order = rng.permutation(len(scores))
        calibration, test = scores[order[: len(scores) // 2]], scores[order[len(scores) // 2 :]]
        missed.append(float((test < conformal.threshold_for_miss_rate(calibration, rate)).mean()))
    error = np.std(missed) / np.sqrt(splits)
    assert np.mean(missed) <= rate + 3 * error
    # And it isn't kept by flagging everything.
    assert np.mean(missed) > rate - 2 / (len(scores) // 2) - 3 * error


def test_random_splits_keep_the_miss_rate_when_each_item_is_split(real: dict[str, np.ndarray]) -> None:
    rate, splits, rng = 0.02, 500, np.random.default_rng(1)
    scores, items = real["forget"], real["forget_items"]
    missed = []
    for _ in range(splits):
        # One rewording of every item is the new request, the rest calibrate.
        order = rng.permutation(len(scores))
        new = order[np.unique(items[order], return_index=True)[1]]
        rest = np.setdiff1d(order, new)
        missed.append(float((scores[new] < conformal.threshold_for_miss_rate(scores[rest], rate)).mean()))
    assert np.mean(missed) <= rate + 3 * np.std(missed) / np.sqrt(splits)


def test_random_splits_keep_the_false_alarm_rate(real: dict[str, np.ndarray]) -> None:
    rate, splits, rng = 0.005, 500, np.random.default_rng(2)
    scores = real["other"]
    flagged = []
    for _ in range(splits):
        order = rng.permutation(len(scores))
        calibration, test = scores[order[: len(scores) // 2]], scores[order[len(scores) // 2 :]]
        flagged.append(float((test >= conformal.threshold_for_false_alarm_rate(calibration, rate)).mean()))
    assert np.mean(flagged) <= rate + 3 * np.std(flagged) / np.sqrt(splits)


def test_the_bound_holds_in_each_group_that_differs(rng: np.random.Generator) -> None:
    scores = np.concatenate([rng.uniform(0.5, 1, 400), rng.uniform(0.1, 0.6, 400)])
    groups = np.repeat(np.array([0, 1], dtype=np.int8), 400)
    threshold = conformal.threshold_by_group(conformal.threshold_for_miss_rate, scores, groups, 0.05, min)
    of_all_scores = conformal.threshold_for_miss_rate(scores, 0.05)
    assert threshold == conformal.threshold_for_miss_rate(scores[400:], 0.05) < of_all_scores
    assert all((scores[groups == number] < threshold).mean() <= 0.05 for number in (0, 1))
    highest = conformal.threshold_by_group(conformal.threshold_for_false_alarm_rate, scores, groups, 0.05, max)
    assert highest == conformal.threshold_for_false_alarm_rate(scores[:400], 0.05)
    assert all((scores[groups == number] >= highest).mean() <= 0.05 for number in (0, 1))


def test_groups_that_do_not_differ_share_one_threshold(rng: np.random.Generator) -> None:
    scores, groups = rng.uniform(size=600), (np.arange(600) % 2).astype(np.int8)
    threshold = conformal.threshold_by_group(conformal.threshold_for_miss_rate, scores, groups, 0.05, min)
    assert threshold == conformal.threshold_for_miss_rate(scores, 0.05)


def test_a_group_too_small_for_the_rate_shares_the_common_threshold(rng: np.random.Generator) -> None:
    scores = np.concatenate([rng.uniform(0.5, 1, 400), rng.uniform(0, 0.1, 12)])
    groups = np.repeat(np.array([0, 1], dtype=np.int8), [400, 12])
    threshold = conformal.threshold_by_group(conformal.threshold_for_miss_rate, scores, groups, 0.05, min)
    assert threshold == conformal.threshold_for_miss_rate(scores, 0.05)


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert conformal.wilson_interval(hits, count) == pytest.approx((low, high), abs=1e-4)
    assert conformal.wilson_interval(0, 0) == (0.0, 1.0)
