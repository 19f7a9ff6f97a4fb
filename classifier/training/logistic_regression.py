"""L2-regularised logistic regression for fitting (scipy). Knows nothing of texts; serving doesn't import it.

scikit-learn's LogisticRegression (lbfgs) was measured on the inputs of the demo's fit and not taken: at an equal loss
it takes as long and its coefficients differ by up to 0.7 % of the largest one, it has no prior (which the fusion
needs), and the extra `forget` would have to install it. Figures: docs/LOG.md, Libraries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from lethe.classifier.text.ngrams import BUCKETS, NgramRows

# Iterations of L-BFGS at most. The demo's models converge (scipy's default tolerance) after 54 at most.
MAX_ITERATIONS = 60
# Corrections that L-BFGS keeps: scipy's default is 10; 8 needs less memory at 262,144 columns. Chosen, not measured.
CORRECTIONS = 8

FloatVector = NDArray[np.float64]


def sparse_matrix(rows: NgramRows) -> Any:
    """The rows as a scipy CSR matrix (N, BUCKETS)."""
    return sparse.csr_matrix((rows.values, rows.buckets, rows.starts), shape=(len(rows.starts) - 1, BUCKETS))


def fit_logistic(
    x: Any,
    labels: NDArray[np.bool_],
    weights: FloatVector,
    *,
    penalty: float,
    prior: FloatVector | None = None,
) -> tuple[FloatVector, float]:
    """Fit coefficients w (D,) and an intercept b by L-BFGS; returns both.

    Minimises  sum_i s_i · log(1 + exp(-y_i (x_i · w + b))) + penalty/2 · |w - prior|²,  where y_i is ±1 and s_i is
    the row's weight divided by twice the weight of its class, so that both classes count half. The intercept isn't
    penalised.

    x: (N, D) dense or CSR; labels: (N,); weights: (N,) positive. Deterministic: starts from `prior` (zeros when None).
    """
    used = np.unique(x.indices) if sparse.issparse(x) else np.arange(x.shape[1])
    columns = x[:, used] if sparse.issparse(x) else x
    transposed = columns.T.tocsr() if sparse.issparse(x) else columns.T
    sign = np.where(labels, 1.0, -1.0)
    share = weights * np.where(labels, 0.5 / weights[labels].sum(), 0.5 / weights[~labels].sum())
    centre = np.zeros(len(used)) if prior is None else prior

    def loss(point: FloatVector) -> tuple[float, FloatVector]:
        coefficients, intercept = point[:-1], point[-1]
        margin = sign * (columns @ coefficients + intercept)
        slope = -sign * share * np.exp(-np.logaddexp(0, margin))
        value = share @ np.logaddexp(0, -margin) + penalty / 2 * ((coefficients - centre) ** 2).sum()
        gradient = np.append(transposed @ slope + penalty * (coefficients - centre), slope.sum())
        return float(value), gradient

    result = optimize.minimize(
        loss,
        np.append(centre, 0.0),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxcor": CORRECTIONS},
    )
    coefficients = np.zeros(x.shape[1])
    coefficients[used] = result.x[:-1]
    return coefficients, float(result.x[-1])
