"""Gauss quadrature rules: from a tridiagonal matrix, back to it, shorter ones, and what they prove of a measure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPENT = 1e-10  # of the largest coefficient so far: below this the rest in the recurrence is rounding
NO_ROOT = 1e-300  # instead of an exact zero in a denominator


def quadrature(alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """Nodes and weights (m,) of the tridiagonal with diagonal ``alpha`` (m,) and off-diagonal ``beta`` (m - 1,).

    Eigenvalues, and squared first components of the eigenvectors (Golub & Welsch 1969).
    """
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    return values, vectors[0] ** 2


def tridiagonal(nodes: Floats, weights: Floats, steps: int | None = None) -> tuple[Floats, Floats]:
    """The coefficients (k,) and (k - 1,) of a rule's tridiagonal, the inverse of :func:`quadrature`.

    Lanczos on diag(nodes) from the roots of the weights, orthogonalised twice; cost O(m k^2).

    Args:
        nodes, weights: (m,) float64; the weights are positive and sum to 1. steps: the leading ones only.

    Returns:
        As many as are asked for; fewer where nodes coincide, which are one.
    """
    basis = np.empty((min(len(nodes), steps or len(nodes)), len(nodes)))
    basis[0] = np.sqrt(weights / weights.sum())
    alpha: list[float] = []
    beta: list[float] = []
    for k in range(len(basis)):
        rest = nodes * basis[k]
        alpha.append(float(basis[k] @ rest))
        for _ in range(2):
            rest = rest - basis[: k + 1].T @ (basis[: k + 1] @ rest)
        length = float(np.linalg.norm(rest))
        if k + 1 == len(basis) or length <= SPENT * max(map(abs, [*alpha, *beta])):
            break
        beta.append(length)
        basis[k + 1] = rest / length
    return np.array(alpha), np.array(beta)


def shortened(nodes: Floats, weights: Floats, steps: int) -> tuple[Floats, Floats]:
    """The rule of the same measure with ``steps`` nodes: what so many Lanczos steps would have given.

    >>> import numpy as np
    >>> shortened(np.array([0.0, 1.0]), np.array([0.5, 0.5]), 1)
    (array([0.5]), array([1.]))
    """
    return quadrature(*tridiagonal(nodes, weights, steps))


def mass_below(nodes: Floats, weights: Floats, x: float) -> tuple[float, float]:
    """What any measure with this Gauss rule has below x, at least; and at or below x, at most.

    The inequalities of Chebyshev, Markov and Stieltjes (Szego 1939, section 3.41), for the rule that has x among its
    nodes (Golub 1973): the measure has at least the weights of the nodes before x there, and at most these and that
    of x itself, which is the Christoffel function. No narrower bounds follow from as many moments.

    Args:
        nodes, weights: (m,) of one rule; weights sum to 1. x: finite or not.

    >>> import numpy as np
    >>> mass_below(np.array([-1.0, 1.0]), np.array([0.5, 0.5]), 0.0)      # +-1, or all of it near 0 but a little
    (0.0, 1.0)
    """
    if math.isinf(x):
        return (0.0, 0.0) if x < 0.0 else (1.0, 1.0)
    alpha, beta = tridiagonal(nodes, weights)
    if len(alpha) == 1:  # of the first moment alone: the mean
        return 0.0, 1.0
    before, here = 0.0, 1.0  # orthogonal polynomials at x, up to a common factor
    for k, (a, b) in enumerate(zip(alpha[:-1], beta, strict=True)):
        before, here = here, ((x - a) * here - (beta[k - 1] * before if k else 0.0)) / b
        size = max(abs(before), abs(here), NO_ROOT)
        before, here = before / size, here / size
    last = x - beta[-1] * before / (here if here else NO_ROOT)
    if not math.isfinite(last):  # x is a node of the rule with one step less, and the other one is at infinity
        alpha, beta = alpha[:-1], beta[:-1]
    else:
        alpha = np.append(alpha[:-1], last)
    values, masses = quadrature(alpha, beta)
    place = int(np.argmin(np.abs(values - x)))
    least = float(masses[:place].sum())
    return least, min(1.0, least + float(masses[place]))
