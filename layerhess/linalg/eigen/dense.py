"""All eigenvalues of a small matrix: read column by column from products, then LAPACK."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Candidates, Floats, Wanted, graded_eigh, known_gaps, neighbours

CHUNK = 64  # columns a pass


class Dense:
    """Reads all n columns with unit vectors, symmetrises and calls LAPACK.

    Cost: n products, never more. A residual is that of the matrix as read, so an asymmetry shows in it. What the
    columns' rounding adds up to is measured in all directions (:mod:`layerhess.checks.matrix_rounding`).

    Args:
        n: dimension. wanted: which pairs to report (all if n is smaller). device: where the matrix lives.
    """

    path = "dense"

    def __init__(self, n: int, wanted: Wanted, device: torch.device | None = None) -> None:
        self.n = n
        self.wanted = Wanted(top=n) if wanted.total >= n else wanted
        self.rounding = 0.0
        self._device = device or torch.device("cpu")
        self._matrix = torch.zeros((n, n), dtype=torch.float64, device=self._device)
        self._read = 0
        self._steps = 0
        self._values: Floats = np.zeros(n)
        self._vectors = torch.empty((0, n), dtype=torch.float64, device=self._device)
        self._residuals: Floats | None = None
        self._steepest: Tensor | None = None

    def ask(self) -> Tensor:
        """The next unit vectors."""
        stop = min(self.n, self._read + CHUNK)
        rows = torch.zeros((stop - self._read, self.n), dtype=torch.float64, device=self._device)
        rows[torch.arange(stop - self._read), torch.arange(self._read, stop)] = 1.0
        return rows

    def tell(self, products: Tensor) -> None:
        """Columns of the matrix (its rows, once symmetric)."""
        self._steps += len(products)
        self._matrix[self._read : self._read + len(products)] = products
        self._read += len(products)
        if self._read == self.n:
            self._solve()

    @property
    def proposes(self) -> bool:
        """True once every column is known."""
        return self._residuals is not None

    @property
    def matrix(self) -> Tensor:
        """(n, n) float64 as read so far; zero elsewhere."""
        return self._matrix

    def candidates(self) -> Candidates:
        """The wanted pairs; none while columns are missing."""
        theta = self._wanted_values()
        residuals = np.empty(0) if self._residuals is None else self._residuals
        return Candidates(
            values=theta,
            vectors=self._vectors,
            residuals=residuals,
            gaps=known_gaps(self._distances(), residuals, np.zeros(len(theta))),
            ends=self.wanted.ends(len(theta)),
            norm=float(np.abs(self._values).max()),
            spectrum=self._values[::-1].copy() if self.proposes else None,
            searches={},
            steps=self._steps,
            steepest=self._steepest,
        )

    def _solve(self) -> None:
        self._values, vectors = graded_eigh((self._matrix + self._matrix.T) / 2)
        kept = self.wanted.indices(self._values)
        self._vectors = vectors[:, kept].T.contiguous()
        place = int(np.abs(self._values).argmax())
        self._steepest = None if place in kept else vectors[:, [place]].T.contiguous()
        theta = torch.from_numpy(self._wanted_values()).to(vectors)
        products = self._vectors @ self._matrix  # A v, in which a row is what the product with a unit vector gave
        self._residuals = torch.linalg.vector_norm(products - theta[:, None] * self._vectors, dim=1).cpu().numpy()

    def _distances(self) -> Floats:
        keep = self.wanted.indices(self._values) if len(self._vectors) else []
        return np.abs(self._values[keep] - self._values[neighbours(self._values, keep)])

    def _wanted_values(self) -> Floats:
        return self._values[self.wanted.indices(self._values)] if len(self._vectors) else np.empty(0)


class Completed(Dense):
    """:class:`Dense` where the products of some vectors are known: only the rest of the space is multiplied.

    Args:
        known: (m, n) linearly independent rows. products: (m, n) theirs.
    """

    def __init__(
        self, n: int, wanted: Wanted, known: Tensor, products: Tensor, device: torch.device | None = None
    ) -> None:
        super().__init__(n, wanted, device)
        columns, triangle = torch.linalg.qr(known.T, mode="complete")
        self._frame: Tensor = columns.T
        self._rows = [torch.linalg.solve_triangular(triangle[: len(known)].T, products, upper=False)]
        self._read = len(known)
        self._finish()

    def ask(self) -> Tensor:
        """The next vectors orthogonal to all before."""
        return self._frame[self._read : self._read + CHUNK]

    def tell(self, products: Tensor) -> None:
        """Their products."""
        self._steps += len(products)
        self._rows.append(products)
        self._read += len(products)
        self._finish()

    def _finish(self) -> None:
        if self._read == self.n:
            self._matrix = self._frame.T @ torch.cat(self._rows)
            self._solve()
