"""Lanczos' three-term recursion without a basis: excludes eigenvalues where memory has no room for more vectors."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from layerhess.linalg.eigen.krylov_basis import BREAKDOWN
from layerhess.linalg.eigen.process import Beside, Recursed
from layerhess.linalg.long_rows import Rows, Space, subtract


class Recursion:
    """One random search in the complement of locked vectors, whose vectors are forgotten (Lanczos 1950).

    Its vectors lose their orthogonality, and its Ritz values may come twice. What it excludes does not depend on that,
    see :func:`layerhess.linalg.eigen.missed.largest_share`: it goes on as long as is needed with three vectors.

    Args:
        start: (n,) random unit vector, orthogonal to the locked ones, in their dtype. locked: (m, n) orthonormal rows.
        norm: of the matrix, as far as it is known. space: where the vectors are in slices.
    """

    def __init__(self, start: Tensor, locked: Rows, norm: float, space: Space | None = None) -> None:
        self._space = Space(locked.shape[1]) if space is None else space
        self._locked = locked
        self._norm = norm
        self._now = self._last = start[None]
        self._diagonal: list[float] = []
        self._couplings: list[float] = []

    def ask(self) -> Tensor:
        """The next unit vector, (1, n)."""
        return self._now

    def tell(self, products: Tensor) -> None:
        """One step of the recursion, in the complement of the locked vectors."""
        row = products.to(torch.float64, copy=True)
        if self._couplings:
            subtract(row, torch.tensor([[self._couplings[-1]]], dtype=torch.float64), self._last)
        own = self._space.inner(row, self._now)
        subtract(row, own, self._now)
        for _ in range(2):
            subtract(row, self._space.inner(self._locked, row), self._locked)
        further = float(self._space.lengths(row))
        self._norm = max(self._norm, abs(float(own)) + further)
        if further <= BREAKDOWN * self._norm:
            further = 0.0
        self._diagonal.append(float(own))
        self._couplings.append(further)
        self._last = self._now
        if further:
            self._now = row.div_(further).to(self._now.dtype)

    def searched(self, beside: Beside) -> Recursed:
        """What it has seen; see :class:`layerhess.linalg.eigen.process.Search` for the argument."""
        diagonal, couplings = np.array(self._diagonal), np.array(self._couplings)
        values = eigvalsh_tridiagonal(diagonal, couplings[:-1])
        n = self._space.n - len(self._locked)
        return Recursed(n, float(values[-1]), float(values[0]), diagonal, couplings, beside)
