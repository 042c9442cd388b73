"""The interface of all eigensolvers: ask for vectors to multiply, tell the products, propose eigenpairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Beside = tuple[tuple[float, float], tuple[float, float]]
NOTHING: Beside = ((-np.inf, 0.0), (np.inf, 0.0))
Source = Callable[[int], Tensor]  # draw number -> a random unit vector (n,) float64


@dataclass(frozen=True)
class Wanted:
    """Which eigenpairs: ``top`` largest and ``bottom`` smallest algebraic, or ``magnitude`` largest in modulus."""

    top: int = 0
    bottom: int = 0
    magnitude: int = 0

    @property
    def total(self) -> int:
        """How many in all."""
        return self.top + self.bottom + self.magnitude

    def indices(self, ascending: Floats) -> list[int]:
        """Positions of the wanted values in an ascending array, ordered from the largest value down."""
        m = len(ascending)
        if self.magnitude:
            best = np.argsort(-np.abs(ascending), kind="stable")[: self.magnitude]
            return sorted((int(i) for i in best), reverse=True)
        top = list(range(m - 1, max(m - 1 - self.top, -1), -1))
        bottom = [i for i in range(min(self.bottom, m) - 1, -1, -1) if i not in top]
        return top + bottom

    def of_size(self, count: int) -> Wanted:
        """As many as ``count`` at the same ends."""
        if self.magnitude:
            return Wanted(magnitude=count)
        bottom = 0 if not self.bottom else count if not self.top else count // 2
        return Wanted(top=count - bottom, bottom=bottom)

    def ends(self, count: int) -> tuple[str, ...]:
        """The end, "top" or "bottom", of each of ``count`` wanted values, in that order."""
        if self.magnitude:
            return ("magnitude",) * count
        return tuple("top" if i < self.top else "bottom" for i in range(count))


@dataclass(frozen=True, eq=False)
class Search:
    """The random search behind the statement that nothing larger was missed; see :mod:`layerhess.linalg.eigen.missed`.

    Attributes:
        n: dimension searched. largest, smallest: extreme Ritz values of all its steps.
        values: (m,) Ritz values of the space it had reached before the first restart.
        first: (w, m) coefficients of the w orthonormal random vectors it began with, in the Ritz vectors.
        outside: (r, m) square root of the inner products of its products' parts outside that space, times the
            coefficients of the r rows that were multiplied; zeros where nothing is outside.
        among: how many eigenvectors may be the missed one: 1 for the extreme one; k where it may be any of k whose
            others the same random vectors have found.
        copies: whether a further copy of an eigenvalue that was found counts as missed.
        beside: of the pairs that are kept out of the search and are not the wanted ones of the top: the largest value
            and the norm of all their residuals; of those that are not the wanted ones of the bottom: the smallest.
    """

    n: int
    largest: float
    smallest: float
    values: Floats
    first: Floats
    outside: Floats
    among: int = 1
    copies: bool = True
    beside: Beside = NOTHING

    @property
    def closed(self) -> bool:
        """Whether nothing leads out of the space: it is invariant."""
        return not bool(self.outside.any())


@dataclass(frozen=True, eq=False)
class Recursed:
    """A random search that kept no basis, see :class:`layerhess.linalg.eigen.recursion.Recursion`.

    Attributes:
        n: dimension searched. largest, smallest: extreme eigenvalues of the tridiagonal matrix.
        diagonal, couplings: (j,) its entries; the last of the second leads out of the space, as long as none is 0.
        beside: see :class:`Search`.
    """

    n: int
    largest: float
    smallest: float
    diagonal: Floats
    couplings: Floats
    beside: Beside = NOTHING

    @property
    def closed(self) -> bool:
        """Whether nothing leads out of the space: it is invariant."""
        return not bool(self.couplings.all())


@dataclass(frozen=True, eq=False)
class Powered:
    """A random search by power iteration, see :class:`layerhess.linalg.eigen.power.Power`.

    Attributes:
        n: dimension searched. largest: the Rayleigh quotient. shift: added to the matrix. steps: number of products;
            log: sum of the logarithms of their lengths, each of a unit vector.
    """

    n: int
    largest: float
    shift: float
    steps: int
    log: float
    beside: Beside = NOTHING

    @property
    def smallest(self) -> float:
        """What is as far below zero, with the shift, as the Rayleigh quotient is above."""
        return -self.largest - 2.0 * self.shift

    @property
    def closed(self) -> bool:
        """Whether a product vanished."""
        return self.log == -np.inf


RandomSearch = Search | Recursed | Powered
Searches = dict[str, tuple[RandomSearch, ...]]


@dataclass(frozen=True)
class Candidates:
    """Eigenpairs that a solver proposes; only :mod:`layerhess.linalg.bounds` judges them.

    Attributes:
        values: (k,) descending. vectors: (k, n) orthonormal rows. residuals: (k,) ||A v - theta v||.
        gaps: (k,) distance to the nearest other Ritz value outside the pair's own cluster, NaN where unknown.
        ends: "top" or "bottom" each. norm: lower estimate of ||A||_2 (largest |Ritz value|).
        spectrum: all eigenvalues, descending, if the whole matrix was read; else None.
        searches: "top"/"bottom" -> the random searches at that end (the first, and the last deflated one), whose
            statements hold at any time.
        steps: products spent. definite: the matrix is known to be positive semidefinite.
        steepest: (1, n) unit vector of (nearly) the largest |eigenvalue|, where the whole matrix was read and no pair
            of it is among these: rounding is measured there too, since the bounds hold for the whole spectrum.
        stored: what rounding of the solver's own vectors adds to every error.
    """

    values: Floats
    vectors: Tensor
    residuals: Floats
    gaps: Floats
    ends: tuple[str, ...]
    norm: float
    spectrum: Floats | None
    searches: Searches
    steps: int
    definite: bool = False
    steepest: Tensor | None = None
    stored: float = 0.0

    @property
    def measured(self) -> Tensor:
        """(k or k + 1, n) vectors at which the products' rounding is to be measured."""
        return self.vectors if self.steepest is None else torch.cat([self.vectors, self.steepest])


class Process(Protocol):
    """A solver in ask/tell form: it never runs a pass itself, so one pass can serve many of them."""

    n: int
    rounding: float
    path: str

    def ask(self) -> Tensor:
        """The (s, n) vectors whose products are needed next; float64, or float32 for a float32 model."""

    def tell(self, products: Tensor) -> None:
        """Receive the (s, n) float64 products of the vectors last asked for."""

    @property
    def proposes(self) -> bool:
        """True when the candidates meet the tolerance, given the rounding known so far."""

    def candidates(self) -> Candidates:
        """The present candidates; valid after the first ``tell``."""


def tolerated(values: Floats, norm: float, tol: float) -> Floats:
    """The error bound at which a pair counts as converged: tol * max(|theta|, 0.1 ||A||)."""
    return np.asarray(tol * scales(values, norm))


def scales(values: Floats, norm: float) -> Floats:
    """What tolerances are relative to: max(|theta|, 0.1 ||A||)."""
    return np.asarray(np.maximum(np.abs(values), 0.1 * norm))


def dense_eigh(matrix: Tensor) -> tuple[Floats, Tensor]:
    """LAPACK's symmetric eigendecomposition of a small float64 matrix: ascending values, columns of vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.cpu().numpy().astype(np.float64), vectors


def graded_eigh(matrix: Tensor) -> tuple[Floats, Tensor]:
    """The same, with better small values.

    Without vectors LAPACK takes the QR iteration, which keeps small eigenvalues of graded matrices accurate.
    """
    _, vectors = dense_eigh(matrix)
    return np.linalg.eigvalsh(matrix.cpu().numpy()), vectors


def neighbours(ascending: Floats, keep: list[int]) -> list[int]:
    """For each kept position in an ascending array, the position of the nearest other value (itself if alone)."""
    last = len(ascending) - 1
    found = []
    for i in keep:
        around = [j for j in (i - 1, i + 1) if 0 <= j <= last]
        found.append(min(around, key=lambda j: abs(ascending[j] - ascending[i])) if around else i)
    return found


def known_gaps(distances: Floats, residuals: Floats, others: Floats) -> Floats:
    """Distance to the nearest eigenvalue, as far as it is known: the neighbour's own residual is subtracted.

    Where that is not more than the pair's residual, both are one cluster and no gap is known (NaN).

    Args:
        distances: to the nearest other Ritz value. residuals: of the pairs. others: of those neighbours.
    """
    gaps = np.asarray(distances - others)
    return np.where(gaps > residuals, gaps, np.nan)
