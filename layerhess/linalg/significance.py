"""Is a difference more than chance? Student's t from few groups, and a false discovery rate over many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr

from layerhess.linalg.estimates import Floats


def two_sided(difference: float, bound: float, standard_error: float, freedom: float) -> float:
    """The probability, where there is no difference, of one that exceeds its numerical bound by as much.

    Args:
        difference: the estimate. bound: its numerical error, which is taken off first. standard_error: of it, known
            with ``freedom`` degrees of freedom.

    Returns:
        The p-value by Student's t; 1 for a difference within its bound, NaN for an unknown standard error.

    >>> round(two_sided(2.228, 0.0, 1.0, 10.0), 4), two_sided(0.1, 0.2, 0.0, 10.0)
    (0.05, 1.0)
    """
    if any(map(math.isnan, (difference, bound, standard_error, freedom))):
        return math.nan
    excess = abs(difference) - bound
    if excess <= 0.0:
        return 1.0
    return 2.0 * float(stdtr(freedom, -excess / standard_error)) if standard_error > 0.0 else 0.0


def welch(errors: Sequence[float], freedoms: Sequence[float]) -> float:
    """Degrees of freedom of the root of a sum of squared standard errors (Welch 1947; Satterthwaite 1946).

    >>> welch([1.0, 1.0], [15.0, 15.0])
    30.0
    """
    squares = [error**2 for error in errors]
    spread = sum(square**2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    return sum(squares) ** 2 / spread if spread > 0.0 else min(freedoms)


def adjusted(p_values: Floats) -> Floats:
    """P-values adjusted for their number: rejecting those up to q holds the false discovery rate at q.

    Benjamini & Yekutieli 2001, theorem 1.3: true however the tests depend on each other. Layers of one network share
    their examples, and two-sided tests of dependent estimates are outside what Benjamini & Hochberg's smaller
    correction is proved for. NaN is no test.

    Args:
        p_values: (m,).

    Returns:
        (m,): the smallest m c(m) p_(j) / j over ranks j from the p-value's own on, c(m) = 1 + 1/2 + ... + 1/m, and at
        most 1.

    >>> import numpy as np
    >>> adjusted(np.array([0.01, np.nan, 0.04])).tolist()
    [0.03, nan, 0.06]
    """
    made = np.full(len(p_values), np.nan)
    tests = np.flatnonzero(~np.isnan(p_values))
    if not len(tests):
        return made
    order = tests[np.argsort(p_values[tests], kind="stable")]
    ranks = np.arange(1, len(order) + 1)
    scaled = p_values[order] * len(order) * (1.0 / ranks).sum() / ranks
    made[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return made
