"""Component scores to one probability: a logistic model over their standardised values. Pure.

The prior is a weighted sum of the standardised scores; the fit departs from it as far as held-out rows require. No
weight is negative: no component may lower the score of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Prior weights of word, character, head and match (`artifact.COMPONENTS`), on standardised scores. Chosen: alone, the
# match separates best and the head worst, so the fit has to give the head more weight than this.
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
        """(N, C) log-odds contribution of each raw component (N, C): (component - centre) / scale · weight."""
        return np.asarray((components - self.centre) / self.scale * self.weight)

    def probability(self, components: Scores) -> Scores:
        """(N,) probability that a window asks for a forget item, if such windows and others were equally common."""
        return np.asarray(np.exp(-np.logaddexp(0, -self.logit(components))))

    def logit(self, components: Scores) -> Scores:
        """(N,) log-odds (natural log units) of `probability`: the sum of the contributions plus the intercept."""
        return np.asarray(self.contributions(components).sum(axis=1) + self.intercept)


# A pair of components counts beside the other when it contributes more than this share of the other's. Chosen, not
# measured.
BOTH_SHARE = 0.5


def deciding_components(contributions: Sequence[float]) -> str:
    """ "lexical", "semantic" or "both": which pair of the four components contributed most to a score."""
    lexical, semantic = contributions[0] + contributions[1], contributions[2] + contributions[3]
    if min(lexical, semantic) > BOTH_SHARE * max(lexical, semantic) > 0:
        return "both"
    return "lexical" if lexical > semantic else "semantic"
