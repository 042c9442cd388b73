"""The diagonal of a matrix from random probes: the options, and the accumulator of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.options import check_common
from layerhess.linalg.stochastic.probe_statistics import Running
from layerhess.linalg.stochastic.rounding import RELATIVE, entry_scales
from layerhess.linalg.stochastic.stopping import excess_of

LEAST = {"auto": 2, "hutchinson": 2, "xdiag": 4}  # fewest products that give an error


@dataclass(frozen=True)
class FlatDiagonal:
    """A diagonal as a flat vector.

    Attributes:
        value, standard_error: (n,) float64. probes, method, status: see
            :class:`layerhess.linalg.estimates.DiagonalEstimate`.
        rounding: absolute error of an entry because products are rounded.
        converged: root of the sum of squared standard errors within ``rel`` of the value's Euclidean norm.
        required: see :class:`layerhess.linalg.estimates.DiagonalEstimate`.
    """

    value: Tensor
    standard_error: Tensor
    probes: int
    method: str
    status: str
    converged: bool
    required: bool = True
    rounding: float = 0.0


@dataclass(frozen=True)
class Diagonal:
    """How accurate a diagonal should be.

    Args:
        rel: root of the sum of squared standard errors over the diagonal's Euclidean norm.
        probes: spend exactly so many products instead, whatever the error (XDiag spends two a random vector); at least
            so many where products of other estimates can be used too, see :class:`layerhess.Trace`.
        method: "auto" (deflated where a basis is known), "hutchinson" or "xdiag". max_probes: products at most.
        required: a diagonal that ends at ``max_probes`` without having reached ``rel`` counts as not converged. With
            ``probes`` it never does.

    Raises:
        InputError: a number that makes no sense, or an unknown method.
    """

    rel: float = 0.05
    probes: int | None = None
    method: str = "auto"
    max_probes: int = 1000
    required: bool = True

    def __post_init__(self) -> None:
        check_common(self.rel, self.probes, self.max_probes, self.method, LEAST)
        if not isinstance(self.required, bool):
            raise InputError(f"required is {self.required!r}", where="required", what_to_do="use True or False")

    def samples(self, deflation: Deflation) -> DiagonalSamples:
        """An empty accumulator."""
        return DiagonalSamples(deflation, self)

    def excess(self, value: Tensor, error: Tensor) -> float:
        """Standard error over the tolerated one, in the Euclidean norm; at most 1 when the goal is reached."""
        return excess_of(_norm(error), self.rel * _norm(value))

    def exact(self, diagonal: Tensor, lengths: Tensor | None = None) -> FlatDiagonal:
        """The estimate when all (n,) entries were read, and the lengths (n,) of their columns are known."""
        entries = "the only entry was" if len(diagonal) == 1 else f"all {len(diagonal)} entries were"
        status = f"exact: {entries} read"
        rounding = RELATIVE * float(entry_scales(diagonal, lengths).max())
        return FlatDiagonal(diagonal, torch.zeros_like(diagonal), 0, "exact", status, True, rounding=rounding)

    def estimate(self, value: Tensor, error: Tensor, *, probes: int, method: str) -> FlatDiagonal:
        """The estimate with its status, from a mean over ``probes`` samples."""
        excess = self.excess(value, error)
        size = f"{100 * excess * self.rel:.2g} %" if _norm(value) > 0.0 or excess == 0.0 else "all"
        status = f"standard error {size} of the diagonal's norm from {probes} random vectors"
        required = self.required and self.probes is None
        if excess > 1.0 and required:
            status += f", above the {100 * self.rel:.2g} % asked for: allow more probes, or a larger error"
        # The variance of an entry's sample is its row's squared length minus the entry's square.
        lengths = (value.square() + max(probes, 1) * error.square()).sqrt()
        rounding = RELATIVE * float(lengths.max()) if probes > 1 else math.inf
        return FlatDiagonal(value, error, probes, method, status, excess <= 1.0, required, rounding)


class DiagonalSamples:
    """Accumulates diag(A_hat) + v * P A x over probes; see :class:`Deflation` for why that is unbiased.

    Bekas, Kokiopoulou & Saad (2007) where nothing is deflated; for Rademacher v the variance of an entry's sample is
    the squared norm of its row of PAP without the diagonal entry. The errors of different entries are correlated.

    >>> import torch
    >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    >>> samples = DiagonalSamples(Deflation.none(2))
    >>> for v in (torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0, -1.0]).double()):
    ...     samples.add(v, v, a @ v)
    >>> samples.mean.tolist(), samples.standard_error.tolist()
    ([2.0, 3.0], [1.0, 1.0])
    """

    def __init__(self, deflation: Deflation, options: Diagonal | None = None) -> None:
        self.deflation = deflation
        self.options = options or Diagonal()
        self._known = deflation.diagonal()
        self._values = Running(torch.zeros_like(self._known))

    def add(self, v: Tensor, x: Tensor, ax: Tensor) -> None:
        """One probe, (n,) each, or several, (s, n).

        Args:
            v: Rademacher. x: ``deflation.project(v)``, not needed here. ax: the product A x. All float64.
        """
        for sample in v.reshape(-1, self.deflation.n) * self.deflation.project(ax.reshape(-1, self.deflation.n)):
            self._values.add(sample)

    @property
    def count(self) -> int:
        """Probes so far."""
        return self._values.count

    @property
    def mean(self) -> Tensor:
        """The diagonal, (n,)."""
        return self._known + self._values.mean

    @property
    def standard_error(self) -> Tensor:
        """Of each entry of :attr:`mean`, (n,); infinite from fewer than two probes.

        Beside a single large entry a of its row, an entry's samples are d + a and d - a. Where by luck all but one
        agree, the mean is off by almost a: seven plain errors from 16 probes. So errors grow with the skewness, up to
        twice.
        """
        lopsided = torch.nan_to_num(self._values.lopsided, nan=1.0, posinf=1.0)
        return self._values.standard_error * lopsided.clamp(min=1.0)

    @property
    def excess(self) -> float:
        """Standard error over the tolerated one."""
        return self.options.excess(self.mean, self.standard_error)

    def estimate(self, method: str | None = None) -> FlatDiagonal:
        """The result so far."""
        method = method or ("deflated" if self.deflation.size else "hutchinson")
        return self.options.estimate(self.mean, self.standard_error, probes=self.count, method=method)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
