"""L2-regularised logistic regression for fitting (scipy). Knows nothing of texts; not used in serving."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from lethe.classifier.text.ngrams import BUCKETS, Rows

STEPS = 60

FloatVector = NDArray[np.float64]


def matrix(rows: Rows) -> Any:
    """The rows as a scipy CSR matrix (N, BUCKETS)."""
    return sparse.csr_matrix((rows.values, rows.buckets, rows.starts), shape=(len(rows.starts) - 1, BUCKETS))


def logistic(
    x: Any,
    labels: NDArray[np.bool_],
    weights: FloatVector,
    *,
    penalty: float,
    prior: FloatVector | None = None,
) -> tuple[FloatVector, float]:
    """Minimise the weighted mean log-loss + penalty/2 · |w - prior|² by L-BFGS; both classes count half.

    x: (N, D) dense or CSR; labels: (N,); weights: (N,) positive. The intercept isn't penalised.
    Returns w (D,) and the intercept. Deterministic: starts from `prior` (zeros when None).
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

    found = optimize.minimize(
        loss, np.append(centre, 0.0), jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "maxcor": 8}
    )
    full = np.zeros(x.shape[1])
    full[used] = found.x[:-1]
    return full, float(found.x[-1])
