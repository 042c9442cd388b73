"""Which larger eigenvalues a search from random vectors excludes, with a stated probability."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from scipy.special import betaincinv

from layerhess.linalg.eigen.process import Floats, Powered, RandomSearch, Recursed, Search

MISSED_PROBABILITY = 0.01  # that an eigenvalue was missed although it is stated to be excluded
BEYOND = 0.05  # of an eigenvalue, see far_excluded
DISTANCES = 4.0 ** np.arange(-10, 21)  # times the spread: where an excluded value is searched for
HALVINGS = 9  # of the distance between two of them


def missed(search: RandomSearch, p: float) -> tuple[float, float]:
    """Eigenvalues above the first or below the second number were missed with probability at most p each way.

    Returns:
        (above, below): inf and -inf when nothing is excluded.
    """
    (above, upper), (below, lower) = search.beside
    return (
        _with_others(_nearest_excluded(search, p, 1.0), above, upper),
        -_with_others(-_nearest_excluded(search, p, -1.0), -below, lower),
    )


def _with_others(x: float, value: float, residual: float) -> float:
    """The largest eigenvalue of [[T, R], [R', B]] at most, for T <= value, ||R|| <= residual and B <= x.

    The search was that of B, the matrix in the complement of the wanted pairs and of others, whose values are T. By
    Cauchy's interlacing no more eigenvalues lie above this number than pairs were wanted, whatever their residuals.
    """
    if math.isinf(value) or math.isinf(x):
        return x
    return 0.5 * (x + value + math.hypot(x - value, 2.0 * residual))


def within(limit: float, value: float, residual: float) -> float:
    """The largest x for which that number is at most ``limit``; -inf where there is none."""
    if math.isinf(value) or math.isinf(limit):
        return limit
    if limit <= value:
        return limit if limit == value and not residual else -math.inf
    return limit - residual**2 / (limit - value)


def excludes(search: RandomSearch, x: float, p: float) -> bool:
    """Whether x, beyond all Ritz values, is not a missed eigenvalue of A, except for starts of probability p.

    Let the start W be w orthonormal random vectors in n dimensions, uniformly distributed, and u a unit eigenvector of
    A at x. :func:`largest_share` bounds ||W u||^2 from what the search has seen. For a u that is fixed before W is
    drawn, ||W u||^2 has the distribution Beta(w/2, (n - w)/2), so a small bound has a small probability. The event does
    not depend on the time of the test: any number of tests share one p, and no bound on the spectrum is needed. In
    finite precision A is the operator whose products were told, which differs from the true one by their rounding.

    Where u may be any of k eigenvectors (``search.among``) and W has found the others, the union over them is taken;
    and if u shares its eigenvalue with some of them, so that u depends on W, W has a smallest singular value below the
    bound on the whole eigenspace. If that has m <= w dimensions, the distance of one of its m images from the span of
    the others is then below sqrt(m) times the bound, and its square has the distribution Beta((w - m + 1)/2, (n -
    w)/2); m = w is the worst case. Of a larger eigenspace W sees w copies; the caller has to check for that.
    """
    return largest_share(search, x) <= _improbable(search, p)


def far_excluded(search: Search, norm: float) -> bool:
    """Have the random vectors alone ruled out, at half the probability, eigenvalues well above the largest Ritz value?

    For a search with given starts: a start that is nearly an eigenvector, but not the top one, has a small residual at
    once. A search from a single random vector has ruled out 1.00 to 1.1 times its eigenvalue when it ends, one from
    four usually 1.01. After a restart this is not required: the space of the random vectors is gone.
    """
    reach = BEYOND * max(abs(search.largest), 0.1 * norm)
    return excludes(search, search.largest + reach, 0.5 * MISSED_PROBABILITY)


def largest_share(search: RandomSearch, x: float) -> float:
    """An upper bound on ||W u||^2, for a unit eigenvector u at x and the random vectors W that the search began with.

    Let Q be the orthonormal basis reached, T = Q A Q', and R the part of A Q' outside the basis: zero except in its
    last rows, where R R' = C. With c = Q u and y = R u there, T c + y = x c; so c = (x - T)^-1 y, and |c|^2 + y' C^-1 y
    <= 1, as u has unit length. In the basis of the Ritz vectors, with y = C^(1/2) z and the singular value
    decomposition U S V' = C^(1/2) L' (x - theta)^-1, L being the last rows there, c = V S U' z where |S U' z|^2 + |z|^2
    <= 1. So the first rows F of c have |F c| <= ||F V S (1 + S^2)^(-1/2)||. For one vector that is one over the
    Christoffel function of its spectral measure (Szego 1939, theorem 3.1.3).
    """
    if search.closed:
        return 0.0
    if isinstance(search, Recursed):
        return _recursed_share(search, x)
    if isinstance(search, Powered):  # <v_j, u> is <w, u> times (x + shift)^j over the product of all lengths
        size = abs(x + search.shift)
        return min(1.0, math.exp(min(0.0, 2.0 * (search.log - search.steps * math.log(size))))) if size else 1.0
    distances = x - search.values
    if not distances.all():
        return 1.0
    reach = search.outside / distances
    if len(reach) == len(search.first) == 1:  # the same without a decomposition
        row = reach[0]
        return float((search.first[0] @ row) ** 2 / (1.0 + row @ row))
    _, sizes, directions = np.linalg.svd(reach, full_matrices=False)
    images = search.first @ directions.T * (sizes / np.hypot(1.0, sizes))
    return float(np.linalg.eigvalsh(images @ images.T)[-1])


def _recursed_share(search: Recursed, x: float) -> float:
    """The same for a search without a basis.

    With c_j = <q_j, u>, b_j c_{j+1} = (x - a_j) c_j - b_{j-1} c_{j-1} whether the q_j are orthogonal or not; so c_j is
    c_1 times a known number, and |c_j| <= 1 since the q_j have unit length.
    """
    before, now, most, coupling = 0.0, 1.0, 1.0, 0.0
    for own, further in zip(search.diagonal.tolist(), search.couplings.tolist(), strict=True):
        if not further:
            break
        before, now, coupling = now, ((x - own) * now - coupling * before) / further, further
        most = max(most, abs(now))
        if most > 1e100:
            break
    return 1.0 / most**2


def reach_outside(form: Floats, last: Floats, floor: float) -> Floats:
    """(r, m) for :attr:`Search.outside`: the square root of ``form``, times ``last``.

    Args:
        form: (r, r) inner products of what of the last rows' products lies outside the space; no longer than ``floor``
            counts as zero. last: (r, m) coefficients of these rows in the Ritz vectors.
    """
    if not float(np.trace(form)) ** 0.5 > floor:
        return np.zeros_like(last)
    if len(form) == 1:
        return np.asarray(np.sqrt(form) * last)
    lengths, vectors = np.linalg.eigh(form)
    return np.asarray((vectors * np.sqrt(np.maximum(lengths, 0.0))).T @ last)


def _improbable(search: RandomSearch, p: float) -> float:
    """The largest ||W u||^2 whose probability is at most p."""
    width = len(search.first) if isinstance(search, Search) else 1
    rest = search.n - width
    if rest <= 0:
        return 1.0
    if not isinstance(search, Search) or search.among == 1:
        return float(betaincinv(width / 2, rest / 2, p))
    if not search.copies:
        return float(betaincinv(width / 2, rest / 2, p / search.among))
    return float(betaincinv(0.5, rest / 2, p / (search.among * width))) / width


def _nearest_excluded(search: RandomSearch, p: float, sign: float) -> float:
    """The excluded value nearest to the extreme Ritz value on the side of ``sign``."""
    edge = search.largest if sign > 0.0 else search.smallest
    if search.closed:
        return edge
    limit = _improbable(search, p)
    distances = (max(search.largest - search.smallest, abs(edge)) or 1.0) * DISTANCES

    def excluded(distance: float) -> bool:
        return largest_share(search, edge + sign * distance) <= limit

    place = bisect_left(range(len(distances)), True, key=lambda i: excluded(float(distances[i])))
    if place == len(distances):
        return sign * math.inf
    near, far = (float(distances[place - 1]) if place else 0.0), float(distances[place])
    for _ in range(HALVINGS):
        middle = 0.5 * (near + far)
        near, far = (near, middle) if excluded(middle) else (middle, far)
    return edge + sign * far
