"""From match scores, which need no training, to the scale of the trained models' probabilities. Knows no text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Quantiles of the scores of counter-examples that become knots. Chosen: dense at the top, where thresholds lie.
OTHER_QUANTILES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)
# Quantiles of the scores of forget texts that become knots. Chosen: rule-made rewordings match less closely than
# people's, so their lower half would set the level too low.
FORGET_QUANTILES = (0.5, 0.75, 1.0)
# Smallest rise from one knot to the next, in both scores. Chosen: keeps the line invertible and is below any threshold.
MIN_RISE = 1e-6

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class MatchCalibration:
    """A rising piecewise linear function through knots: match scores (K,) to log-odds (K,).

    The log-odds are those of asking for a forget item.
    """

    matches: NDArray[np.float64]
    logits: NDArray[np.float64]

    def probability(self, match: Vector) -> Vector:
        """Return the probability of each match score, elementwise.

        Beyond the knots the line continues with its mean slope.
        """
        slope = (self.logits[-1] - self.logits[0]) / (self.matches[-1] - self.matches[0])
        beyond = np.minimum(match - self.matches[0], 0) + np.maximum(match - self.matches[-1], 0)
        return np.asarray(1 / (1 + np.exp(-np.interp(match, self.matches, self.logits) - slope * beyond)))


def fit_match_calibration(other: tuple[Vector, Vector], forget: tuple[Vector, Vector]) -> MatchCalibration:
    """Map match scores to the log-odds that the fitted models give texts of the same rank (quantile matching).

    other, forget: match scores and log-odds, (n,) each, of counter-examples and of forget texts. A threshold then
    flags as many counter-examples by either score.
    """
    x = [np.quantile(other[0], OTHER_QUANTILES), np.quantile(forget[0], FORGET_QUANTILES)]
    y = [np.quantile(other[1], OTHER_QUANTILES), np.quantile(forget[1], FORGET_QUANTILES)]
    # Equal scores give equal quantiles.
    rise = np.arange(len(OTHER_QUANTILES) + len(FORGET_QUANTILES)) * MIN_RISE
    return MatchCalibration(*(np.maximum.accumulate(np.concatenate(part)) + rise for part in (x, y)))
