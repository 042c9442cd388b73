"""Error bounds of eigenpairs, from residuals, measured rounding and random starts; used for every solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.eigen.exclusion import excluded_pairs, reaches
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY, missed
from layerhess.linalg.eigen.process import Candidates, Floats, tolerated

ROUNDING_SAFETY = 3.0  # times the one measured difference between two precisions
OTHER_SAFETY = 25.0  # where another product's rounding stands for it, both may by luck be small (1 of 1000)
ASSUMED_ROUNDING = 1e-5  # of |theta|, in float32, where no float64 copy of the model can be made
FLOAT64_OF_FLOAT32 = 2.0**-29  # ratio of the unit roundoffs
SMALLEST_NORM = float(np.finfo(np.float64).tiny) ** 0.5  # the squares in a smaller one vanish
MOST = 0.05  # of max(|theta|, 0.1 ||A||): a larger bound is no number, whatever the arithmetic allows
ZERO_LEVEL = 100.0  # eps: below this share of the full product a block's product is rounding


@dataclass(frozen=True)
class Certificate:
    """What is proved of a block's candidates; :class:`layerhess.results.record.SpectrumRecord` explains the fields."""

    error_bounds: Floats
    conditional_bounds: Floats
    converged: np.ndarray[tuple[int], np.dtype[np.bool_]]
    limited_by_dtype: bool
    rounding: float
    missed_above: float
    missed_below: float
    missed_probability: float
    within: np.ndarray[tuple[int], np.dtype[np.bool_]]
    excluded: np.ndarray[tuple[int], np.dtype[np.bool_]]


def certify(
    candidates: Candidates, *, tol: float, rounding: float, p: float = MISSED_PROBABILITY, exclude: float | None = None
) -> Certificate:
    """Error bounds and convergence of candidate pairs.

    error_bounds = ||A v - theta v|| + rounding: an eigenvalue of the symmetric A lies that close (Parlett 1998, th.
    4.5.1); where such intervals overlap, see :func:`in_order`. conditional_bounds = r^2/gap + rounding (th. 11.7.1), no
    larger than the former, true only if the rest of the spectrum lies beyond the gap. Within its tolerance: error bound
    <= tol * max(|theta|, 0.1 ||A||). Excluded: beyond the wanted pairs nothing above theta + exclude * max(|theta|, 0.1
    ||A||) is left open, except with probability p (mirrored at the bottom). Converged: both; or an error bound of at
    most twice the rounding term ("limited by dtype") and at most 5 % of that maximum.

    Args:
        candidates: what a solver proposes. tol: relative tolerance. rounding: absolute error of a product at the
            candidates, see :mod:`layerhess.checks.rounding`; that of the solver's own vectors is added. p: probability
            for :func:`layerhess.linalg.eigen.missed.missed`. exclude: None asks for nothing.
    """
    residuals, rounding = np.asarray(candidates.residuals), rounding + candidates.stored
    bounds = residuals + rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        quadratic = np.where(candidates.gaps > 0, residuals**2 / candidates.gaps, np.nan)
    conditional = np.fmin(quadratic, residuals) + rounding
    conditional[np.isnan(quadratic)] = np.nan
    within = bounds <= np.maximum(tolerated(candidates.values, candidates.norm, tol), 2.0 * SMALLEST_NORM)
    at_floor = (bounds <= 2.0 * rounding) & (bounds <= tolerated(candidates.values, candidates.norm, MOST))
    above, below = math.inf, -math.inf
    if candidates.spectrum is not None:
        p = 0.0
        above, below = float(candidates.spectrum[0]), float(candidates.spectrum[-1])
    else:
        # Each search makes its own statement; the stronger one counts, and p is shared among them.
        for search in (tops := candidates.searches.get("top", ())):
            above = min(above, missed(search, p / len(tops))[0] + rounding)
        for search in (bottoms := candidates.searches.get("bottom", ())):
            below = max(below, missed(search, p / len(bottoms))[1] - rounding)
    if candidates.definite and candidates.spectrum is None:
        below = max(below, 0.0)
    excluded = np.ones(len(bounds), dtype=bool)
    if exclude is not None and candidates.spectrum is None:
        beyond = reaches(candidates.values, candidates.norm, exclude)
        excluded = excluded_pairs(candidates.values, candidates.ends, beyond, above, below)
    return Certificate(
        error_bounds=in_order(candidates.values, bounds),
        conditional_bounds=conditional,
        converged=np.where(within, excluded, at_floor),
        limited_by_dtype=bool(np.any(at_floor & ~within)),
        rounding=rounding,
        missed_above=above,
        missed_below=below,
        missed_probability=p,
        within=within,
        excluded=excluded,
    )


def in_order(values: Floats, bounds: Floats) -> Floats:
    """Error bounds of the i-th eigenvalue, where each interval holds one of them but not necessarily the i-th.

    Of close eigenvalues a smaller one may be known well before a larger one is. The i-th largest lies between the i-th
    largest lower and the i-th largest upper end.

    Args:
        values: (k,) descending. bounds: (k,) of each one's interval.
    """
    upper, lower = np.sort(values + bounds)[::-1], np.sort(values - bounds)[::-1]
    reach = np.maximum(upper - values, values - lower)
    alone = (upper == values + bounds) & (lower == values - bounds)
    return np.where(alone, bounds, np.maximum(bounds, reach))


def missed_factor(above: float, top: float) -> float:
    """``above`` as a factor of the largest eigenvalue; NaN if that is not positive."""
    return above / top if top > 0.0 else math.nan


def zero_level(eps: float, full_norm: float) -> float:
    """The norm of a product with a random unit vector below which a block may count as zero.

    In half precision 100 eps would be most of the full product, so the level is never more than a hundredth of it.
    """
    return min(ZERO_LEVEL * eps, 0.01) * full_norm


def zero_bound(level: float, norm: float, n: int, p: float = MISSED_PROBABILITY) -> float | None:
    """Error bound of the eigenvalue 0.0 of a block that counts as zero, or None for a block that does not.

    A block is zero if the products are below the level and this bound is of its order; else it must be solved.

    Args:
        level: of :func:`zero_level`. norm: the larger of the two products' norms. n: dimension. p: probability.
    """
    bound = max(level, random_bound(norm, n, p))
    return bound if norm <= level and bound <= 10.0 * level else None


def random_bound(norm: float, n: int, p: float = MISSED_PROBABILITY) -> float:
    """||A|| at most, with probability 1 - p, where two random unit vectors have products of at most this norm.

    A random vector sees 1/sqrt(n) of a single direction. ||A|| <= alpha sqrt(2 n / pi) max ||A u_i|| with probability
    1 - alpha^-2 for two random unit vectors (Dixon 1983; Halko, Martinsson & Tropp 2011, lemma 4.1).
    """
    return math.sqrt(2.0 * n / (math.pi * p)) * norm


def unit_rounding(eps: float, length: float) -> float:
    """Least relative error of a product: two roundings, more where a batch sums up many terms.

    A small sample cannot show the latter. Errors of a sum grow like the square root of its length, less with blocked
    summation. Arguments as for :func:`total_rounding`.
    """
    return max(2.0, math.sqrt(length) / 16.0) * eps


def total_rounding(measured: float, eps: float, norm: float, length: float) -> float:
    """The rounding part of a bound: what was measured, but never less than :func:`unit_rounding`.

    One measurement can be too small by luck, so there is a least value. Added are 16 roundings of float64 for the small
    eigenproblem.

    Args:
        measured: absolute, see :class:`layerhess.checks.rounding.RoundingMeter`. eps: of the coarsest dtype in the
            graph.
        norm: of the operator. length: the most terms summed up in one batch.
    """
    return max(measured, unit_rounding(eps, length) * norm) + 16.0 * float(np.finfo(np.float64).eps) * norm
