"""What a random start proves: which eigenvalues beyond those found would have shown themselves."""

from __future__ import annotations

import math

from layerhess.solvers.process import Search

MISSED_PROBABILITY = 0.01  # of a missed eigenvalue beyond what is stated to be excluded
LARGE = 1e100  # beyond it the recurrence is scaled down
FARTHEST = 60  # doublings of the spread that the search for an excluded value goes through


def missed(search: Search, p: float) -> tuple[float, float]:
    """Eigenvalues above the first or below the second number were missed with probability at most p each way.

    A search from one vector excludes by its own Lanczos coefficients, see :func:`excludes`. A search from several
    vectors at once falls back on what its number of steps says whatever the spectrum. There the operator is not
    semidefinite, so the theorem (:func:`relative_gap_excluded`) speaks about the spread lambda_1 - lambda_n: with both
    ends at p/2, spread <= (theta_1 - theta_n) / (1 - 2 epsilon); p is further divided by the number of stopping checks
    (union bound), since the search stopped at a step that the data chose.

    Returns:
        (above, below): inf and -inf when nothing is excluded.
    """
    if search.alphas:
        return _nearest_excluded(search, p, 1.0), _nearest_excluded(search, p, -1.0)
    epsilon = relative_gap_excluded(search.n, search.steps, p / (2.0 * max(1, search.checks)))
    if epsilon >= 0.5:
        return math.inf, -math.inf
    margin = epsilon * (search.largest - search.smallest) / (1.0 - 2.0 * epsilon)
    return search.largest + margin, search.smallest - margin


def excludes(search: Search, x: float, p: float) -> bool:
    """Whether x, beyond all Ritz values, is no extreme eigenvalue of A, but for a start of probability p.

    Let the start w be uniform on the sphere in n dimensions and u a unit eigenvector of A at x. The polynomials p_i
    that Lanczos makes, p_i(A) w = q_i, are orthonormal in the spectral measure of w, which has mass <w, u>^2 at x; the
    Christoffel function bounds that mass: <w, u>^2 <= 1 / sum_i p_i(x)^2 (Szego 1939, theorem 3.1.3; the sum runs to
    p_m, which the m-th step knows). But |<w, u>| < delta has probability at most delta sqrt(2 n / pi). So with
    delta = p sqrt(pi / (2 n)) a sum of delta^-2 or more rules x out. The event does not depend on when one looks: any
    number of looks shares one p, and no bound on the spectrum is needed. In finite precision A is the operator whose
    products were told, at most their rounding away.

    Where the start is (v + s w) / ||v + s w|| with a fixed unit v, |<v, u> + s <w, u>| < delta (1 + s) is no more
    likely than with v = 0 (Anderson 1955): delta shrinks by the random share s / (1 + s).
    """
    if not search.alphas:
        return False
    threshold = 2.0 * math.log(math.sqrt(2.0 * search.n / math.pi) / (search.share * p))
    return _log_kernel(search, x) >= threshold


def relative_gap_excluded(n: int, steps: int, p: float) -> float:
    """epsilon such that P[(lambda_1 - theta_1) > epsilon * (lambda_1 - lambda_n)] <= p after ``steps`` Lanczos steps.

    Kuczynski & Wozniakowski 1992, theorem 4.2 (b): for a start uniform on the sphere the probability is at most
    1.648 sqrt(n) exp(-(2 steps - 1) sqrt(epsilon)).

    Args:
        n: dimension. steps: products from a random start, counted before the first restart. p: probability.

    >>> round(1 / (1 - relative_gap_excluded(100_000, 8, 0.01)), 1)
    2.1
    >>> round(1 / (1 - relative_gap_excluded(100_000, 40, 0.01)), 2)
    1.02
    """
    if steps < 1:
        return 1.0
    if steps >= n:
        return 0.0
    return min(1.0, (math.log(1.648 * math.sqrt(n) / p) / (2 * steps - 1)) ** 2)


def _log_kernel(search: Search, x: float) -> float:
    """log of sum p_i(x)^2, by the three-term recurrence; infinite once the start lies in an invariant subspace."""
    before, now, total, scale, coupling = 0.0, 1.0, 1.0, 0.0, 0.0
    for alpha, beta in zip(search.alphas, search.betas, strict=True):
        if not beta > 0.0:
            return math.inf
        before, now, coupling = now, ((x - alpha) * now - coupling * before) / beta, beta
        total += now * now
        if abs(now) > LARGE:
            before, now, total, scale = before / LARGE, now / LARGE, total / LARGE**2, scale + 2.0 * math.log(LARGE)
    return math.log(total) + scale


def _nearest_excluded(search: Search, p: float, sign: float) -> float:
    """The excluded value nearest to the extreme Ritz value on the side of ``sign``."""
    edge = search.largest if sign > 0.0 else search.smallest
    if excludes(search, edge, p):
        return edge
    width = max(search.largest - search.smallest, abs(edge)) or 1.0
    near, far = 0.0, 2.0**-20 * width
    for _ in range(FARTHEST):
        if excludes(search, edge + sign * far, p):
            break
        near, far = far, 2.0 * far
    else:
        return sign * math.inf
    for _ in range(50):
        middle = 0.5 * (near + far)
        near, far = (near, middle) if excludes(search, edge + sign * middle, p) else (middle, far)
    return edge + sign * far
