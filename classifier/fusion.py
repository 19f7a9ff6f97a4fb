"""Component scores to one calibrated probability: a logistic model over their standardised values. Pure.

The plain sum of standardised scores is the prior that the fit departs from only as far as held-out rows ask
for, and no component may count against forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Word, character, head, match. The head is the weakest alone, so it has to earn its place.
PRIOR = (1.0, 1.0, 0.25, 2.0)

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Fusion:
    """Centre, scale and weight of each of the C components, and the intercept."""

    centre: Scores
    scale: Scores
    weight: Scores
    intercept: float

    def contributions(self, components: Scores) -> Scores:
        """(N, C) what each component adds to the logit, given raw components (N, C)."""
        return np.asarray((components - self.centre) / self.scale * self.weight)

    def probability(self, components: Scores) -> Scores:
        """(N,) probability that a text asks for what is to be forgotten, both being equally common."""
        return np.asarray(np.exp(-np.logaddexp(0, -self.logit(components))))

    def logit(self, components: Scores) -> Scores:
        """(N,) log-odds of `probability`."""
        return np.asarray(self.contributions(components).sum(axis=1) + self.intercept)


def decided_by(contributions: Sequence[float]) -> str:
    """ "lexical", "semantic" or "both": which pair of the four components carried a score."""
    lexical, semantic = contributions[0] + contributions[1], contributions[2] + contributions[3]
    if min(lexical, semantic) > 0.5 * max(lexical, semantic) > 0:
        return "both"
    return "lexical" if lexical > semantic else "semantic"
