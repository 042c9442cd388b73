"""What rounding makes of a matrix that is read whole, estimated from the errors of a few random products.

A pair's own product shows the rounding there and nowhere else. A whole spectrum, an exact trace or diagonal and a
Frobenius norm depend on the error E = A~ - A in all directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor

from layerhess.linalg.random_vectors import random_signs

SIGNS, FEWER = 8, 4  # random vectors; fewer where each takes a product in either precision


@dataclass(frozen=True)
class MatrixRounding:
    """Absolute errors of a matrix, each an estimate of its norm times a safety factor.

    Attributes:
        spectral: of any eigenvalue (Weyl 1912). trace: of the trace. entry: of any diagonal entry. frobenius: of the
            Frobenius norm.
    """

    spectral: float
    trace: float
    entry: float
    frobenius: float

    def or_worse(self, other: MatrixRounding) -> MatrixRounding:
        """The larger of each error."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return MatrixRounding(*(max(pair) for pair in pairs))

    def at_least(self, norm: float) -> MatrixRounding:
        """These errors, where in one direction an error of this norm was seen."""
        return MatrixRounding(*(max(own, norm) for own in (self.spectral, self.trace, self.entry, self.frobenius)))


@dataclass(frozen=True)
class Rounding:
    """The rounding error of a block's products, absolute; of the whole matrix if known.

    source: "measured" against another precision; "perturbed": read off products at weights moved by their last digit;
    or "assumed".
    """

    norm: float
    source: str
    matrix: MatrixRounding | None = None

    @property
    def worst(self) -> float:
        """Of any eigenvalue that is given: where the matrix was read whole, those of no pair are given too."""
        return self.norm if self.matrix is None else max(self.norm, self.matrix.spectral)

    @property
    def finite(self) -> bool:
        """Whether the errors are numbers."""
        return math.isfinite(self.norm) and (self.matrix is None or math.isfinite(self.matrix.frobenius))

    def or_worse(self, other: Rounding) -> Rounding:
        """The larger of each error; both are of the same kind."""
        matrix = self.matrix if other.matrix is None or self.matrix is None else self.matrix.or_worse(other.matrix)
        return Rounding(max(self.norm, other.norm), self.source, matrix)


@dataclass(frozen=True)
class RowRounding:
    """Absolute errors of the rows of the full matrix.

    Attributes:
        relative: of a row's norm. rows: parameter -> norms of the errors besides; empty where they were not measured.
    """

    relative: float = 0.0
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> float:
        """Frobenius norm of the error in all rows of some parameters."""
        return math.hypot(*(float(torch.linalg.vector_norm(self.rows[name])) for name in names if name in self.rows))


def directions(n: int, name: str, count: int, device: torch.device) -> Tensor:
    """(s, n) unit vectors z / sqrt(n), with E[z z'] = I: random signs, or all unit vectors where these are no more."""
    if n <= count:
        return torch.eye(n, dtype=torch.float64, device=device)
    return torch.stack([random_signs(n, 0, name, number, device) for number in range(count)]) / math.sqrt(n)


def of_errors(vectors: Tensor, errors: Tensor, safety: float) -> MatrixRounding:
    """From the errors E z of the products of :func:`directions`.

    mean ||E z||^2 is ||E||_F^2 and mean z'E z is tr E, with a variance of at most 2 ||E||_F^2 for one z (Hutchinson
    1990, Girard 1989). For independent z and y, mean ((E z)'E y)^2 is ||E'E||_F^2, whose fourth root is at least
    ||E||_2 and for errors at random far below ||E||_F. A diagonal entry is at most its row's norm.

    Args:
        vectors: (s, n). errors: (s, n). safety: factor of each, for eight vectors; the more for
            fewer.
    """
    count, n = errors.shape
    rows = errors * math.sqrt(n)
    frobenius = spectral = math.sqrt(float(rows.square().sum()) / count)
    trace = abs(float((vectors * rows).sum()) * math.sqrt(n) / count)
    if count < n:
        safety *= SIGNS / count
        trace += 2.0 * frobenius / math.sqrt(count)
        inner = (rows @ rows.T).square()
        spectral = (float(inner.sum() - inner.diagonal().sum()) / (count * (count - 1))) ** 0.25
    entry = math.sqrt(float(rows.square().sum(dim=0).max()) / count)
    return MatrixRounding(safety * spectral, safety * trace, safety * entry, safety * frobenius)
