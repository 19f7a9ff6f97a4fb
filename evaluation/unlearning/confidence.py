"""Estimates with confidence intervals: Wilson intervals of shares, bootstrap intervals of means.

The intervals are scipy's, which the extra `evaluate` installs; it is imported on the first call, so that commands that
compute no interval start without it. Pure: knows nothing of what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Coverage of every interval, as is usual in the literature.
CONFIDENCE = 0.95
# Bootstrap resamples: the ends of a 95 % interval then rest on about 50 resamples each.
RESAMPLES = 2000
# Resamples held in memory at a time: 64 of 10,000 values are 5 MB.
RESAMPLE_BATCH = 64


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval: `low` ≤ `value` ≤ `high`, from `n` observations."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """Return the JSON form that reports use: value, low, high, n."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def estimate_share(successes: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """Return successes / n with its Wilson score interval (Wilson, J. Am. Stat. Assoc. 22, 1927).

    Raises ValueError when n is 0, when successes is not in [0, n], and for a confidence outside (0, 1).
    """
    from scipy.stats import binomtest

    _check_confidence(confidence)
    if n == 0:
        raise ValueError("cannot estimate a share from no observations")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # Rounding must not put an end of the interval on the wrong side of the share.
    share = successes / n
    return Estimate(share, min(share, float(interval.low)), max(share, float(interval.high)), n)


def estimate_mean(values: Sequence[float], seed: int, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of values with its percentile bootstrap interval (Efron, Ann. Stat. 7, 1979).

    The same `seed` gives the same interval. Raises ValueError for no values, for a value that isn't finite, and for a
    confidence outside (0, 1).
    """
    observed = np.asarray(values, dtype=np.float64)
    if not observed.size or not np.isfinite(observed).all():
        raise ValueError("a bootstrap needs at least one value, and only finite ones")
    mean = float(observed.mean())
    low, high = bootstrap_interval([observed], np.mean, seed, confidence, vectorized=True)
    return Estimate(mean, min(mean, low), max(mean, high), observed.size)


def bootstrap_interval(
    samples: Sequence[NDArray[Any]],
    statistic: Callable[..., Any],
    seed: int,
    confidence: float = CONFIDENCE,
    *,
    vectorized: bool = False,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of several samples, each resampled on its own.

    statistic: takes one array per sample; with vectorized, of one sample only, also `axis`. A sample of one observation
    is not resampled. Raises ValueError for a confidence outside (0, 1).
    """
    from scipy.stats import bootstrap

    _check_confidence(confidence)
    resampled = [i for i, sample in enumerate(samples) if len(sample) > 1]
    if not resampled:
        value = float(statistic(*samples))
        return value, value

    def statistic_of_resampled(*resamples: NDArray[Any]) -> Any:
        arguments = list(samples)
        for i, resample in zip(resampled, resamples, strict=True):
            arguments[i] = resample
        return statistic(*arguments)

    interval = bootstrap(
        [samples[i] for i in resampled],
        statistic if vectorized else statistic_of_resampled,
        n_resamples=RESAMPLES,
        batch=RESAMPLE_BATCH,
        vectorized=vectorized,
        confidence_level=confidence,
        method="percentile",
        random_state=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
