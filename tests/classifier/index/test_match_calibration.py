from __future__ import annotations

import numpy as np

from lethe.classifier.index.match_calibration import MatchCalibration, fit_match_calibration


def test_probabilities_rise_with_the_match_score_also_beyond_the_knots() -> None:
    rng = np.random.default_rng(0)
    other = rng.normal(0.2, 0.05, 500), rng.normal(-6, 1, 500)
    forget = rng.normal(0.8, 0.1, 200), rng.normal(4, 1, 200)
    calibration = fit_match_calibration(other, forget)
    assert (np.diff(calibration.matches) > 0).all() and (np.diff(calibration.logits) > 0).all()
    probabilities = calibration.probability(np.linspace(-1, 2, 300))
    assert (np.diff(probabilities) > 0).all() and 0 < probabilities[0] < 0.01 and 0.99 < probabilities[-1] < 1


def test_equal_scores_still_give_rising_knots() -> None:
    same = np.zeros(10), np.zeros(10)
    calibration = fit_match_calibration(same, same)
    assert (np.diff(calibration.matches) > 0).all() and (np.diff(calibration.logits) > 0).all()


def test_beyond_the_knots_the_mean_slope_continues() -> None:
    calibration = MatchCalibration(np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 4.0]))
    logits = np.log(1 / (1 / calibration.probability(np.array([-1.0, 0.5, 3.0])) - 1))
    assert np.allclose(logits, [-2.0, 1.5, 6.0])
