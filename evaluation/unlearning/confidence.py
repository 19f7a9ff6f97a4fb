"""How sure a measured figure is: Wilson intervals of shares, bootstrap intervals of means. Pure.

Knows nothing of what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lethe.classifier.conformal import wilson as wilson

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """A figure with its interval: `low` ≤ `value` ≤ `high`, from `n` observations."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """As JSON reports give it: value, low, high, n."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def share(successes: int, n: int, confidence: float = CONFIDENCE) -> Rate:
    """successes / n with its Wilson interval. Raises ValueError when n is 0: there is no share of nothing."""
    if n == 0:
        raise ValueError("a share of no observations")
    return Rate(successes / n, *wilson(successes, n, confidence), n)


def bootstrap(values: Sequence[float], seed: int, confidence: float = CONFIDENCE) -> Rate:
    """The mean of values with its percentile bootstrap interval (Efron, Ann. Stat. 7, 1979).

    Deterministic under `seed`. Raises ValueError for no values, for one that isn't finite, and for a
    confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    observed = np.asarray(values, dtype=np.float64)
    if not observed.size or not np.isfinite(observed).all():
        raise ValueError("a bootstrap needs values, all of them finite")
    generator = np.random.default_rng(seed)
    # One resample at a time: thousands of values by thousands of resamples would not fit in memory.
    means = [generator.choice(observed, observed.size).mean() for _ in range(RESAMPLES)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(observed.mean())
    return Rate(mean, min(mean, float(low)), max(mean, float(high)), observed.size)
