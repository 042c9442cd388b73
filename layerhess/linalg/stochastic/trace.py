"""The trace of a matrix from random probes: the options, and the accumulator of samples."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.linalg.estimates import TraceEstimate
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.options import check_common, is_number
from layerhess.linalg.stochastic.probe_statistics import Running, half_width
from layerhess.linalg.stochastic.rounding import RELATIVE, coarser, entry_scales
from layerhess.linalg.stochastic.stopping import excess_of

LEAST = {"auto": 2, "hutchinson": 2, "hutch++": 6, "xtrace": 4}  # fewest products that give an error
NEAR_ZERO = 0.1  # of the nuclear norm: a trace below this counts as cancelled, and its error is relative to this


@dataclass(frozen=True)
class Trace:
    """How accurate a trace should be.

    Args:
        rel: standard error over |trace|.
        absolute: standard error that is good enough in any case; by default ``rel`` times 10 % of the nuclear norm
            (estimated), because a trace in which the eigenvalues cancel is not known to a fraction of itself.
        probes: spend exactly so many products instead, whatever the error. Hutchinson's estimator spends one a random
            vector, XTrace two, Hutch++ three. In an analysis with other estimates, products made for those are used as
            well; then it is at least so many.
        method: "auto", "hutchinson", "hutch++" or "xtrace". max_probes: products at most, a full product being one of
            every block; products made for other estimates do not count.

    Raises:
        InputError: a number that makes no sense, or an unknown method.

    >>> Trace(rel=0.01).tolerance(-50.0, nuclear=100.0)
    0.5
    """

    rel: float = 0.02
    absolute: float | None = None
    probes: int | None = None
    method: str = "auto"
    max_probes: int = 1000

    def __post_init__(self) -> None:
        if self.absolute is not None and not (is_number(self.absolute) and 0.0 < self.absolute < math.inf):
            raise InputError(f"absolute is {self.absolute!r}", where="absolute", what_to_do="use a number > 0, or None")
        check_common(self.rel, self.probes, self.max_probes, self.method, LEAST, zero=self.absolute is not None)

    def tolerance(self, value: float, nuclear: float = 0.0) -> float:
        """The standard error at which to stop: max(rel |value|, absolute)."""
        floor = self.rel * NEAR_ZERO * nuclear if self.absolute is None else self.absolute
        return max(self.rel * abs(value), floor)

    def samples(self, deflation: Deflation) -> TraceSamples:
        """An empty accumulator."""
        return TraceSamples(deflation, self)

    def exact(self, diagonal: Tensor, lengths: Tensor | None = None) -> TraceEstimate:
        """The estimate when all (n,) diagonal entries were read, and the lengths (n,) of their columns are known."""
        entries = "the only diagonal entry was" if len(diagonal) == 1 else f"all {len(diagonal)} diagonal entries were"
        return self.known(float(diagonal.sum()), f"exact: {entries} read", float(entry_scales(diagonal, lengths).sum()))

    def known(self, value: float, status: str, scale: float = 0.0) -> TraceEstimate:
        """The estimate when no probe was needed; ``status`` says why.

        Args:
            scale: sum of the magnitudes of the summands.
        """
        rounding = RELATIVE * scale
        return TraceEstimate(
            value, 0.0, value - rounding, value + rounding, 0, "exact", True, status, rounding=rounding
        )

    def estimate(
        self, value: float, error: float, *, probes: int, method: str, nuclear: float, scale: float = 0.0
    ) -> TraceEstimate:
        """The estimate with its interval and status, from a mean over ``probes`` samples.

        Args:
            nuclear: norm, the reference for a cancelling trace. scale: magnitude of the summands, if that is more.
        """
        rounding = RELATIVE * max(nuclear, abs(value), scale)
        half = half_width(error, probes) + rounding
        tolerated = self.tolerance(value, nuclear)
        converged = error <= tolerated
        size = f"{100 * error / abs(value):.2g} % of the value" if value else f"{error:.2g}"
        status = f"standard error {size} from {probes} random vectors"
        if not converged:
            status += f", above the {tolerated:.2g} asked for: allow more probes, or a larger error"
        elif error > self.rel * abs(value):
            status += ": the value is small against the absolute error that is tolerated"
        return TraceEstimate(
            value, error, value - half, value + half, probes, method, converged, status, rounding=rounding
        )


def rounded(found: TraceEstimate, relative: float) -> TraceEstimate:
    """An estimate of :class:`Trace`, which assumes products right to float64, with their true relative error.

    The interval and ``rounding`` grow; the standard error does not change, since it is over the random vectors.
    """
    return widened(found, found.rounding * (coarser(relative) - 1.0))


def widened(found: TraceEstimate, more: float) -> TraceEstimate:
    """The estimate with so much more rounding, and a wider interval."""
    return dataclasses.replace(found, low=found.low - more, high=found.high + more, rounding=found.rounding + more)


class TraceSamples:
    """Accumulates tr(T) + x'A x over probes; see :class:`Deflation` for why that is unbiased.

    Hutchinson (1990) where nothing is deflated; for Rademacher v the sample's variance is
    2 (||PAP||_F^2 - sum of its squared diagonal).

    >>> import torch
    >>> a = torch.diag(torch.tensor([1.0, 2.0, 4.0]).double())
    >>> samples, v = TraceSamples(Deflation.none(3)), torch.tensor([1.0, -1.0, 1.0]).double()
    >>> for sign in (1.0, -1.0):
    ...     samples.add(sign * v, sign * v, sign * a @ v)
    >>> samples.mean, samples.standard_error         # a diagonal matrix has no variance
    (7.0, 0.0)
    """

    def __init__(self, deflation: Deflation, options: Trace | None = None) -> None:
        self.deflation = deflation
        self.options = options or Trace()
        self._values = Running(0.0)
        self._squares = 0.0  # sum of ||A x||^2, whose mean is ||A P||_F^2
        self._fourths = 0.0  # sum of (A x . A x')^2 over successive probes, whose mean is ||P A^2 P||_F^2
        self._last: Tensor | None = None
        self.nuclear_elsewhere = 0.0  # another estimate of the nuclear norm, where there is a better one

    def add(self, v: Tensor, x: Tensor, ax: Tensor) -> None:
        """One probe, (n,) each, or several, (s, n).

        Args:
            v: Rademacher. x: ``deflation.project(v)``. ax: the product A x. All float64.
        """
        x, ax = x.reshape(-1, self.deflation.n), ax.reshape(-1, self.deflation.n)
        for value in (x * ax).sum(dim=1).tolist():
            self._values.add(value)
        self._squares += float((ax * ax).sum())
        follows = ax if self._last is None else torch.cat([self._last[None], ax])
        self._fourths += float(((follows[1:] * follows[:-1]).sum(dim=1) ** 2).sum())
        self._last = ax[-1].clone()

    @property
    def count(self) -> int:
        """Probes so far."""
        return self._values.count

    @property
    def mean(self) -> float:
        """The trace."""
        return self.deflation.trace + self._values.mean

    @property
    def standard_error(self) -> float:
        """Of :attr:`mean`; infinite from fewer than two probes."""
        return self._values.standard_error

    @property
    def nuclear(self) -> float:
        """An estimate of the nuclear norm ||A||_*, mostly too small.

        By Hoelder's inequality ||B||_* >= ||B||_F^3 / ||B||_4^2 in Schatten norms, with equality where all non-zero
        singular values are equal; both norms of B = A P are means over the probes. sqrt(n) ||A||_F would be far above
        for an operator of low rank.
        """
        rest = 0.0
        if self._fourths > 0.0:
            frobenius = math.sqrt(self._squares / self.count)
            rest = frobenius**3 / math.sqrt(self._fourths / (self.count - 1))
        return max(self.deflation.nuclear + rest, self.nuclear_elsewhere)

    @property
    def excess(self) -> float:
        """Standard error over the tolerated one; at most 1 when the goal is reached."""
        return excess_of(self.standard_error, self.options.tolerance(self.mean, self.nuclear))

    def estimate(self, method: str | None = None) -> TraceEstimate:
        """The result so far."""
        method = method or ("deflated" if self.deflation.size else "hutchinson")
        return self.options.estimate(
            self.mean, self.standard_error, probes=self.count, method=method, nuclear=self.nuclear
        )
