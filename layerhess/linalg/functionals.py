"""Functions of a spectrum from quadratures: averages, and counts in an interval, each with its error.

Three errors are kept apart and combined as independent ones.

1. The spread over the random vectors: their scatter, or what theory says of it if that is more. For a uniform unit
   vector v'Bv has the variance 2 (tr B^2 / n - (tr B / n)^2) / (n + 2), for signs at most n + 2 over n times that; B's
   square is in the same quadratures. A few vectors may all have little of one eigenvalue, and then scatter little.
2. The quadratures' own: the change from half the steps to all of them. Of a step function that says nothing; for
   counts it is what the inequalities of Chebyshev, Markov and Stieltjes leave open, as the root mean square distance
   from a uniform variable, so that four of them cover all of it.
3. Rounding: how far the function changes within the error of an eigenvalue.

Eigenvalues whose eigenvectors are known need no chance: each counts as one, and the vectors see the rest of the space
alone (Gambhir, Stathopoulos & Orginos 2017, for the trace). These come from the first vector's Krylov space, so that
vector is no sample then: its vectors would have been chosen by its own chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtr

from layerhess.errors import InputError
from layerhess.linalg.gauss_rules import Floats, mass_below, shortened

UNSEEN = 1e-4  # probability at which a single eigenvalue there would have been seen so little by all vectors
NEAR = 1e-2  # of an eigenvalue: a node this near to a known one is its image


@dataclass(frozen=True)
class Rules:
    """The quadratures of one spectral density, and what else is known of the spectrum.

    Attributes:
        nodes, weights: one (m,) pair for each random vector, the weights of each sum to 1; of a spectrum that is known,
            a single pair with all n eigenvalues.
        exact: for each, the rule is right for every function.
        numel: dimension n. whole: the spectrum is known.
        values, bounds: (K,) eigenvalues whose eigenvectors are known, and how far they may be off.
        overlaps: (vectors, K) squared products of the random vectors with these eigenvectors.
        rounding: absolute, of any eigenvalue.
    """

    nodes: tuple[Floats, ...]
    weights: tuple[Floats, ...]
    exact: tuple[bool, ...]
    numel: int
    whole: bool
    values: Floats
    bounds: Floats
    overlaps: Floats
    rounding: float

    @property
    def samples(self) -> range:
        """The vectors that count: all, or without the first where its Krylov space was used."""
        return range(1 if len(self.values) else 0, len(self.nodes))

    @property
    def rest(self) -> int:
        """The dimension that is left to chance."""
        return self.numel - len(self.values)

    def remaining(self, vector: int, whole: float, known: Any, low: float = 0.0, high: float = 1.0) -> float:
        """A vector's average on the rest of the space alone.

        Args:
            whole: its average over all of it. known: values at the known eigenvalues. low, high: limits of any average,
                in which it is kept where next to nothing of the vector is left.
        """
        seen = self.overlaps[vector]
        left = 1.0 - float(seen.sum())
        return min(max((whole - float((seen * known).sum())) / left, low), high) if left > 0.0 else low


# -- averages ----------------------------------------------------------------------------------------------------------


def total(rules: Rules, f: Callable[[Floats], Any]) -> tuple[float, float]:
    """Sum of f over all eigenvalues, and its standard error: NaN from one vector.

    Args:
        f: (k,) float64 eigenvalues -> (k,).

    Raises:
        InputError: f fails, has another shape, or is NaN or infinite at a node.
    """
    if rules.whole:
        values = evaluated(f, rules.nodes[0])
        return math.fsum(values), math.fsum(_moved(f, rules.nodes[0], values, rules.rounding))
    known, n = evaluated(f, rules.values), rules.rest
    samples, squares, halves, moved = [], [], [], []
    for vector in rules.samples:
        nodes, weights = rules.nodes[vector], rules.weights[vector]
        values = evaluated(f, nodes, vector)
        ends = float(min(values.min(), known.min(initial=np.inf))), float(max(values.max(), known.max(initial=-np.inf)))
        samples.append(rules.remaining(vector, float(weights @ values), known, *ends))
        most = max(ends[0] ** 2, ends[1] ** 2)
        squares.append(rules.remaining(vector, float(weights @ values**2), known**2, 0.0, most))
        moved.append(float(weights @ _moved(f, nodes, values, rules.rounding)))
        if not rules.exact[vector]:
            fewer, masses = shortened(nodes, weights, max(1, len(nodes) // 2))
            half = rules.remaining(vector, float(masses @ evaluated(f, fewer, vector)), known, *ends)
            halves.append(abs(half - samples[-1]))
        else:
            halves.append(0.0)
    value = math.fsum(known) + n * float(np.mean(samples))
    if len(rules.nodes) < 2:
        return value, math.nan
    square = max(float(np.mean(squares)), _least_square(rules, f, n))
    spread = max(_error_of_mean(np.array(samples)), _theory(square - float(np.mean(samples)) ** 2, n, len(samples)))
    rounding = math.fsum(_moved(f, rules.values, known, rules.rounding)) + n * float(np.mean(moved))
    bent = math.fsum(_bent(f, rules.values, known, rules.bounds))
    return value, math.hypot(n * spread, n * float(np.mean(halves)), rounding + bent)


def evaluated(f: Callable[[Floats], Any], nodes: Floats, vector: int | None = None) -> Floats:
    """f at the nodes.

    Raises:
        InputError: it fails, has another shape, or is NaN or infinite; the node is named.
    """
    if not len(nodes):
        return np.empty(0)
    try:
        with np.errstate(all="ignore"):
            found = np.asarray(f(np.array(nodes)))
    except Exception as error:
        raise InputError(
            f"f fails on an array of eigenvalues ({type(error).__name__}: {error})",
            where="f",
            what_to_do="give a function of a NumPy array, made of NumPy's functions, such as numpy.log1p",
        ) from error
    if found.shape != nodes.shape or found.dtype.kind not in "biuf":
        raise InputError(
            f"f returns {found.dtype} of shape {found.shape} for {len(nodes)} eigenvalues",
            where="f",
            what_to_do="return one real number for each entry of the array that it is given",
        )
    values = found.astype(np.float64)
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        of = "" if vector is None else f" of random vector {vector}"
        raise InputError(
            f"f is {values[place]} at the node {float(nodes[place])!r}{of}",
            where="f",
            what_to_do="give a function that is finite on the whole spectrum, a little beyond its ends too",
        )
    return values


def _moved(f: Callable[[Floats], Any], nodes: Floats, values: Floats, by: Any) -> Floats:
    """How far f changes within ``by`` of each node; sides where f is not defined tell nothing."""
    if not len(nodes) or not np.any(by):
        return np.zeros(len(nodes))
    with np.errstate(all="ignore"):
        sides = [np.abs(np.asarray(f(nodes + sign * by), dtype=np.float64) - values) for sign in (-1.0, 1.0)]
    return np.asarray(np.fmax(np.fmax(*sides), 0.0))


def _bent(f: Callable[[Floats], Any], values: Floats, known: Floats, by: Floats) -> Floats:
    """How far v'f(A)v may be from f(v'Av) with ||Av - (v'Av) v|| = by: f's mean at both ends; at one, where it has two.

    The mean of A in the state v is exact, so that what is left is of second order.
    """
    if not len(values):
        return np.empty(0)
    with np.errstate(all="ignore"):
        sides = [np.asarray(f(values + sign * by), dtype=np.float64) - known for sign in (-1.0, 1.0)]
        both = np.abs(sides[0] + sides[1]) / 2.0
    return np.where(np.isnan(both), _moved(f, values, known, by), both)


def _least_square(rules: Rules, f: Callable[[Floats], Any], n: int) -> float:
    """What tr f(A)^2 is at least, over the rest's dimension: the spectrum reaches as far as the outermost nodes do."""
    seen = np.concatenate([rules.nodes[vector] for vector in rules.samples])
    if len(rules.values):
        apart = np.abs(seen[:, None] - rules.values) > np.maximum(rules.bounds, NEAR * np.abs(rules.values))
        seen = seen[apart.all(axis=1)]
    if not len(seen) or not n:
        return 0.0
    ends = np.unique([seen.min(), seen.max()])
    return float((evaluated(f, ends) ** 2).sum()) / n


def _theory(variance: float, n: int, vectors: int) -> float:
    """Standard error of a mean of v'Bv over unit vectors, the eigenvalues of B having that variance."""
    return math.sqrt(max(0.0, 2.0 * variance / ((n + 2) * vectors)))


def _error_of_mean(samples: Floats) -> float:
    return float(samples.std(ddof=1)) / math.sqrt(len(samples)) if len(samples) > 1 else 0.0


# -- counts ------------------------------------------------------------------------------------------------------------


def count(rules: Rules, above: float, below: float) -> tuple[float, float]:
    """The number of eigenvalues in [above, below], and its standard error: NaN from one vector.

    An end counts as met within the rounding of an eigenvalue.
    """
    off = rules.rounding
    if rules.whole:
        values = rules.nodes[0]
        inside = float(_inside(values, above, below, off).sum())
        return inside, _open(float(_inside(values, above, below, -off).sum()), inside, inside)
    n, reach = rules.rest, rules.bounds + off
    known = _inside(rules.values, above, below, off)
    sure = _inside(rules.values, above, below, -reach)
    perhaps = _inside(rules.values, above, below, reach)
    astray = _astray(rules.values, rules.bounds, above, below)[sure == perhaps].sum()
    # All that is known to be near an end lies between it and such a distance: at least is without it, at most with it,
    # and the number itself with it where the known one is.
    near = sure != perhaps
    wide = off + float(np.max((_distance(rules.values, above, below) + rules.bounds)[near], initial=0.0))
    met = wide if known[near].any() else -wide if near.any() else off
    least, found, most = [], [], []
    for vector in rules.samples:
        nodes, weights = rules.nodes[vector], rules.weights[vector]
        low, high = _bracket(nodes, weights, rules.exact[vector], above, below, wide)
        middle = float(weights[_inside(nodes, above, below, met)].sum())
        least.append(rules.remaining(vector, low, sure))
        most.append(rules.remaining(vector, high, perhaps))
        found.append(min(max(rules.remaining(vector, middle, known), least[-1]), most[-1]))
    value = float(known.sum()) + n * float(np.mean(found))
    if len(rules.nodes) < 2:
        return value, math.nan
    spread = max(_error_of_mean(np.array(shares)) for shares in (least, found, most))
    low, high = float(np.mean(least)), float(np.mean(most))
    spread = max(spread, _theory(_widest_variance(low, high, n, len(found)), n, len(found)))
    bracket = _open(float(sure.sum()) + n * low, float(perhaps.sum()) + n * high, value) + float(astray)
    return value, math.hypot(n * spread, bracket)


def _open(least: float, most: float, value: float) -> float:
    """Root mean square distance of a value from a uniform variable between both."""
    return math.sqrt(max(0.0, most - least) ** 2 / 12.0 + (value - (least + most) / 2.0) ** 2)


def _share(found: float) -> float:
    return min(1.0, max(0.0, float(found)))


def _inside(values: Floats, above: float, below: float, off: Any) -> Any:
    return (values >= above - off) & (values <= below + off)


def _distance(values: Floats, above: float, below: float) -> Floats:
    return np.minimum(np.abs(values - above), np.abs(values - below))


def _astray(values: Floats, bounds: Floats, above: float, below: float) -> Floats:
    """What a known vector may have beyond an end: at most (residual / distance)^2, by Chebyshev's inequality."""
    distance = _distance(values, above, below)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.minimum(1.0, np.nan_to_num((bounds / distance) ** 2)))


def _bracket(
    nodes: Floats, weights: Floats, exact: bool, above: float, below: float, off: float
) -> tuple[float, float]:
    """What the vector's own measure has in the interval, at least and at most."""
    if exact:
        return tuple(float(weights[_inside(nodes, above, below, by)].sum()) for by in (-off, off))  # type: ignore[return-value]
    at_least = mass_below(nodes, weights, below - off)[0] - mass_below(nodes, weights, above + off)[1]
    at_most = mass_below(nodes, weights, below + off)[1] - mass_below(nodes, weights, above - off)[0]
    return _share(at_least), _share(at_most)


def _widest_variance(low: float, high: float, n: int, vectors: int) -> float:
    """The largest variance of an indicator whose mean is between both, or is that of one eigenvalue more or less.

    One eigenvalue (or the lack of one) is not seen at all only if all vectors have next to nothing of it: the sum of
    their squared components is a chi-square variable.
    """
    if not n:
        return 0.0
    if chdtr(vectors, vectors * n * high) > UNSEEN:
        high = max(high, 1.0 / n)
    if chdtr(vectors, vectors * n * (1.0 - low)) > UNSEEN:
        low = min(low, 1.0 - 1.0 / n)
    mean = min(max(0.5, low), high)
    return mean * (1.0 - mean)
