"""The whole matrix of a small block, column by column, and LAPACK: complete, nothing can be missed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layerhess.solvers.process import Candidates, Wanted, dense_eigh, nearest_gaps

CHUNK = 64  # columns a pass


class Dense:
    """Reads off all n columns with unit vectors, symmetrises, and calls LAPACK.

    Cost: n products. The residuals are measured against the matrix as read, before it was symmetrised, so that an
    asymmetric product shows.

    Args:
        n: dimension. wanted: which pairs to report (all if n is smaller). device: where the matrix lives.
    """

    path = "dense"

    def __init__(self, n: int, wanted: Wanted, device: torch.device | None = None) -> None:
        self.n = n
        self.wanted = wanted
        self.rounding = 0.0
        self._device = device or torch.device("cpu")
        self._matrix = torch.empty((n, n), dtype=torch.float64, device=self._device)
        self._read = 0

    def ask(self) -> Tensor:
        """The next unit vectors."""
        stop = min(self.n, self._read + CHUNK)
        rows = torch.zeros((stop - self._read, self.n), dtype=torch.float64, device=self._device)
        rows[torch.arange(stop - self._read), torch.arange(self._read, stop)] = 1.0
        return rows

    def tell(self, products: Tensor) -> None:
        """Columns of the matrix (its rows, once symmetric)."""
        self._matrix[self._read : self._read + len(products)] = products
        self._read += len(products)

    @property
    def proposes(self) -> bool:
        """True once every column is known."""
        return self._read == self.n

    def candidates(self) -> Candidates:
        """Exact eigenpairs of the matrix (of the columns read so far, the rest taken as zero, if interrupted)."""
        matrix = self._matrix.clone()
        matrix[self._read :] = 0.0
        symmetric = (matrix + matrix.T) / 2
        _, vectors = dense_eigh(symmetric)
        # Without vectors LAPACK takes the QR iteration, which keeps small eigenvalues of graded matrices accurate.
        values = np.linalg.eigvalsh(symmetric.cpu().numpy())
        wanted = Wanted(top=self.n) if self.wanted.total >= self.n else self.wanted
        keep = wanted.indices(values)
        chosen = vectors[:, keep].T.contiguous()
        theta = values[keep]
        # A v by columns: row i of the matrix as read is A e_i.
        applied = chosen @ matrix
        residuals = torch.linalg.vector_norm(applied - torch.from_numpy(theta).to(applied)[:, None] * chosen, dim=1)
        whole = self.proposes
        measured = residuals.cpu().numpy() if whole else np.full(len(keep), np.inf)
        return Candidates(
            values=theta,
            vectors=chosen,
            residuals=measured,
            gaps=nearest_gaps(theta, values, measured),
            ends=self.wanted.ends(len(keep)) if wanted is self.wanted else ("top",) * len(keep),
            norm=float(np.abs(values).max()),
            spectrum=values[::-1].copy() if whole else None,
            searches={},
            steps=self._read,
        )
