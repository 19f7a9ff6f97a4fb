"""Thresholds with a finite-sample bound: split conformal. Pure; knows only calibration scores.

A new score that is exchangeable with the n calibration scores lies below their k-th smallest with
probability at most k / (n + 1). Source: Vovk et al., Algorithmic Learning in a Random World, 2005; used for
prompt detection in ECO (arXiv:2406.07933).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def for_miss_rate(forget_scores: NDArray[np.float64], rate: float) -> float:
    """The largest threshold that a forget prompt falls below with probability at most `rate`.

    forget_scores: (n,) calibration scores. A prompt is flagged when its score is at least the threshold.
    Raises ValueError for a rate outside (0, 1) and when n is too small: n + 1 must reach 1 / rate.
    """
    rank = _rank(len(forget_scores), rate, "miss rate", "forget")
    return float(np.sort(forget_scores)[rank - 1])


def for_false_alarm_rate(other_scores: NDArray[np.float64], rate: float) -> float:
    """The smallest threshold that another prompt reaches with probability at most `rate`.

    other_scores: (n,) calibration scores of prompts that aren't to be forgotten. Errors as above.
    """
    rank = _rank(len(other_scores), rate, "false alarm rate", "other")
    # Strictly above the score of that rank, so that its own prompt isn't flagged.
    return float(np.nextafter(np.sort(other_scores)[-rank], math.inf))


def _rank(count: int, rate: float, what: str, which: str) -> int:
    if not 0 < rate < 1:
        raise ValueError(f"{what} {rate} is not between 0 and 1")
    # The small addition undoes the rounding of a product such as 100 * 0.01.
    rank = math.floor((count + 1) * rate + 1e-9)
    if rank < 1:
        raise ValueError(
            f"{what} {rate}: {count} {which} calibration scores are too few, at least "
            f"{math.ceil(1 / rate - 1 - 1e-9)} are needed"
        )
    return rank
