"""Functions of a spectrum that a spectral density offers (effective dimension, log det, counts), with their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerhess.errors import InputError
from layerhess.linalg import functionals
from layerhess.linalg.described import Described, Description
from layerhess.linalg.functionals import Rules
from layerhess.linalg.gauss_rules import Floats
from layerhess.linalg.numbers import counted, number, rounded_up, standard

Bools = NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class FunctionalEstimate(Described):
    """One number that follows from a whole spectrum; made by the methods of :class:`DensityEstimate`.

    Attributes:
        value: the number. standard_error: over the random vectors, with the error of their quadratures and with
            rounding; the latter alone where the whole spectrum is known; NaN from one vector.
        name: what it is. status: a sentence.
    """

    value: float
    standard_error: float
    name: str
    status: str

    def _describe(self) -> Description:
        text = standard(self.value, self.standard_error)
        return Description(f"{self.name[0].upper()}{self.name[1:]}: {text}", (f"status: {self.status}",))


class Functionals(Described):
    """The methods; nodes, weights and the rest are those of :class:`layerhess.linalg.estimates.DensityEstimate`."""

    nodes: Floats
    weights: Floats
    probes: int
    numel: int
    finished: bool
    exhausted: Bools
    known: Floats
    known_bounds: Floats
    overlaps: Floats
    rounding: float
    lowest: float

    def average(self, f: Callable[[Floats], Any]) -> FunctionalEstimate:
        """tr f(A) / n: the mean of a function over all eigenvalues.

        Args:
            f: takes an array (k,) of float64 eigenvalues, returns one real number for each. It has to be smooth on the
                scale of the nodes; for a step use :meth:`share`.

        Raises:
            InputError: the density was stopped early; f is NaN or infinite at a node, which is named.

        >>> import numpy as np, layerhess as lh
        >>> round(lh.density(np.diag([1.0, 2.0, 6.0])).average(np.log).value, 6)  # log(12) / 3
        0.828302
        """
        rules = self._rules()
        value, error = functionals.total(rules, f)
        return self._functional("mean of f over the eigenvalues", value / rules.numel, error / rules.numel)

    def effective_dimension(self, alpha: float) -> FunctionalEstimate:
        """Sum of lambda / (lambda + alpha): how many directions the data decide, beside a prior of precision alpha.

        MacKay (1992), "A practical Bayesian framework for backpropagation networks", eq. 4.9; also called the number of
        well-determined parameters.

        Args:
            alpha: -alpha has to lie below the spectrum.

        Raises:
            InputError: the density was stopped early; -alpha is not below the lowest node and the smallest eigenvalue
                that is known.
        """
        shift = self._shift(alpha)
        value, error = functionals.total(self._rules(), lambda x: x / (x + shift))
        return self._functional(f"effective dimension at alpha = {number(shift)}", value, error)

    def log_det(self, alpha: float) -> FunctionalEstimate:
        """log det (A + alpha I), the sum of log(lambda + alpha).

        Args, Raises: as :meth:`effective_dimension`.
        """
        shift = self._shift(alpha)
        value, error = functionals.total(self._rules(), lambda x: np.log(x + shift))
        return self._functional(f"log det (A + {number(shift)} I)", value, error)

    def count(self, above: float = -math.inf, below: float = math.inf) -> FunctionalEstimate:
        """The number of eigenvalues from ``above`` to ``below``, both included.

        A quadrature cannot say on which side of an end the eigenvalues next to it lie: the error has what the
        inequalities of Chebyshev, Markov and Stieltjes leave open. It is small in a gap of the spectrum.

        Raises:
            InputError: the density was stopped early; the ends are swapped, or one of them is no number.
        """
        rules = self._rules()
        low, high = _interval(above, below)
        return self._functional(f"number of eigenvalues{_where(low, high)}", *functionals.count(rules, low, high))

    def share(self, above: float = -math.inf, below: float = math.inf) -> FunctionalEstimate:
        """The share of the dimension that :meth:`count` counts; same arguments and errors."""
        found = self.count(above, below)
        name = found.name.replace("number", "share")
        return self._functional(name, found.value / self.numel, found.standard_error / self.numel)

    def _rules(self) -> Rules:
        if not self.finished:
            raise InputError(
                "the density was stopped early: it has its two moments, and no other function of the spectrum",
                where="density",
                what_to_do="analyse again, with a larger time_limit or max_passes",
            )
        if self.numel < 1:
            raise InputError("the density does not say of which dimension it is", where="numel", what_to_do="set it")
        rows = [(x[w > 0.0], w[w > 0.0]) for x, w in zip(self.nodes, self.weights, strict=True)]
        return Rules(
            nodes=tuple(x for x, _ in rows),
            weights=tuple(w / w.sum() for _, w in rows),
            exact=tuple(map(bool, self.exhausted)),
            numel=self.numel,
            whole=not self.probes,
            values=self.known,
            bounds=self.known_bounds,
            overlaps=self.overlaps,
            rounding=self.rounding,
        )

    def _shift(self, alpha: float) -> float:
        """alpha, if -alpha lies below the spectrum as far as that is known."""
        value = _real(alpha, "alpha")
        seen = float(self.nodes[self.weights > 0.0].min())
        lowest = min(seen, self.lowest) if self.lowest <= seen else seen  # NaN: only the nodes are known
        if not lowest + value > self.rounding:
            least = max(self.rounding - lowest, 0.0)
            what = "lowest node" if lowest == seen and self.probes else "smallest eigenvalue"
            raise InputError(
                f"-alpha is not below the spectrum: alpha is {value!r}, the {what} {lowest!r}",
                where="alpha",
                what_to_do=f"use an alpha above {rounded_up(least) if least else 0}",
            )
        return value

    def _functional(self, name: str, value: float, error: float) -> FunctionalEstimate:
        if not self.probes:
            status = f"exact: all {self.numel} eigenvalues are known"
        elif self.probes == 1:
            status = "from one random vector: no error is known"
        else:
            status = f"from {self.probes} random vectors"
            if len(self.known):
                status += f", and {counted(len(self.known), 'known eigenvector')}"
        return FunctionalEstimate(float(value), float(error), name, status)


def _real(value: Any, name: str) -> float:
    """A real number, as a float.

    Raises:
        InputError: it is none, or NaN, or infinite.
    """
    made = _number(value, name)
    if math.isinf(made):
        raise InputError(f"{name} is {value!r}", where=name, what_to_do="use a finite number")
    return made


def _number(value: Any, name: str) -> float:
    try:
        made = math.nan if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an integer beyond all floats
        made = math.nan
    if math.isnan(made):
        said = repr(value)
        raise InputError(
            f"{name} is {said if len(said) < 40 else f'{said[:20]}...'}",
            where=name,
            what_to_do="use a number that a float can hold",
        )
    return made


def _where(low: float, high: float) -> str:
    """The interval in words."""
    if low == -math.inf and high == math.inf:
        return ""
    if high == math.inf:
        return f" of {number(low)} or more"
    return f" of {number(high)} or less" if low == -math.inf else f" from {number(low)} to {number(high)}"


def _interval(above: Any, below: Any) -> tuple[float, float]:
    low, high = _number(above, "above"), _number(below, "below")
    if low > high:
        raise InputError(
            f"the ends are swapped: above is {low!r} and below is {high!r}",
            where="above, below",
            what_to_do=f"count(above={high!r}, below={low!r}) has the eigenvalues between them",
        )
    return low, high
