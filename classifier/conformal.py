"""Thresholds with a finite-sample bound: split conformal. Pure; knows only calibration scores.

A new score that is exchangeable with the n calibration scores lies below their k-th smallest with
probability at most k / (n + 1). Source: Vovk et al., Algorithmic Learning in a Random World, 2005; used for
prompt detection in ECO (arXiv:2406.07933).

What the bound covers. The items are fixed: a request to be flagged rewords one of *these* items, and every item gave
the same number of calibration rewordings. A new rewording of a random item is then one more draw of the same kind, and
n counts rewordings. The bound doesn't cover items that weren't fitted, rewordings of another kind, or any single item:
it holds on the average over the items.

Group-conditional (Mondrian) thresholds keep the bound in each group by itself, where the groups' scores differ.
Source: Vovk, Conditional validity of inductive conformal predictors, arXiv:1209.2673.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def threshold_for_miss_rate(forget_scores: NDArray[np.float64], rate: float) -> float:
    """The largest threshold that a forget prompt falls below with probability at most `rate`.

    forget_scores: (n,) calibration scores. A prompt is flagged when its score is at least the threshold.
    Raises ValueError for a rate outside (0, 1) and when n is too small: n + 1 must reach 1 / rate.
    """
    rank = _rank(len(forget_scores), rate, "miss rate", "forget")
    return float(np.sort(forget_scores)[rank - 1])


def threshold_for_false_alarm_rate(other_scores: NDArray[np.float64], rate: float) -> float:
    """The smallest threshold that another prompt reaches with probability at most `rate`.

    other_scores: (n,) calibration scores of prompts that aren't to be forgotten. Errors as above.
    """
    rank = _rank(len(other_scores), rate, "false alarm rate", "other")
    # Strictly above the score of that rank, so that its own prompt isn't flagged.
    return float(np.nextafter(np.sort(other_scores)[-rank], math.inf))


# The group of a text, known without further work. short: the raw view has one outer window, so about one sentence;
# long: it has more; disguised: a decoded view (neither raw nor normalised) had the highest score.
GROUPS = ("short", "long", "disguised")
# Significance level of the test whether a group's scores differ from the others'. Chosen: the usual 0.05 would give
# groups thresholds of their own by chance in one fit of twenty.
SIGNIFICANCE = 0.01


def threshold_by_group(
    find_threshold: Callable[[NDArray[np.float64], float], float],
    scores: NDArray[np.float64],
    groups: NDArray[np.int8],
    rate: float,
    strictest: Callable[[list[float]], float],
) -> float:
    """The strictest of the thresholds of all scores and of each group whose scores differ from the others'.

    It is one number for all groups: a request may hold texts of several groups. find_threshold:
    `threshold_for_miss_rate` with `strictest` min, or `threshold_for_false_alarm_rate` with max; groups: (n,) indices
    into GROUPS. A group with too few scores for the rate is left out. Raises ValueError as `find_threshold` does for
    all scores.
    """
    thresholds = [find_threshold(scores, rate)]
    for number in range(len(GROUPS)):
        inside = groups == number
        if inside.any() and not inside.all() and _scores_differ(scores[inside], scores[~inside]):
            with contextlib.suppress(ValueError):
                thresholds.append(find_threshold(scores[inside], rate))
    return strictest(thresholds)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a binomial share; unlike the normal approximation it is valid near 0 and 1.

    With n = 0 it is (0, 1). Raises ValueError unless 0 <= successes <= n and 0 < confidence < 1. Source: Wilson,
    J. Am. Stat. Assoc. 22, 1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not put an end of the interval on the wrong side of the share.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _scores_differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Two-sample Kolmogorov-Smirnov test at level SIGNIFICANCE (asymptotic critical value)."""
    both = np.sort(np.concatenate([one, other]))
    below = [np.searchsorted(np.sort(x), both, side="right") / len(x) for x in (one, other)]
    critical = math.sqrt(-math.log(SIGNIFICANCE / 2) / 2 * (len(one) + len(other)) / (len(one) * len(other)))
    return float(np.abs(below[0] - below[1]).max()) > critical


def _rank(count: int, rate: float, what: str, which: str) -> int:
    if not 0 < rate < 1:
        raise ValueError(f"{what} {rate} is not between 0 and 1")
    # 1e-9 undoes the rounding error of a product such as 100 * 0.01.
    rank = math.floor((count + 1) * rate + 1e-9)
    if rank < 1:
        raise ValueError(
            f"{what} {rate}: {count} {which} calibration scores are too few, at least "
            f"{math.ceil(1 / rate - 1 - 1e-9)} are needed"
        )
    return rank
