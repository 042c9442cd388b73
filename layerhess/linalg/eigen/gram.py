"""Solver for a matrix A = R' D R that was decomposed from its rows R; checks each eigenpair by a product with A."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Candidates, Floats, Wanted, known_gaps, neighbours
from layerhess.linalg.eigen.row_sum import Decomposition

# Relative difference of two products with a random vector up to which the rows count as the operator's.
SAME = {True: 1e-8, False: 1e-3}


class Gram:
    """Proposes the pairs of a :class:`layerhess.linalg.eigen.row_sum.Decomposition`, after a product with each of them.

    A random vector is multiplied as well. If the decomposition's own product differs, the rows are not the operator's
    in all directions: the pairs are kept with their residuals, but the spectrum is not called complete.

    Cost: one product for each wanted pair, and one more where not all pairs are wanted, so n at most.

    Args:
        found: with the vectors of ``wanted`` (all pairs if there are fewer). exact: the rows were made in float64.
    """

    path = "gram"

    def __init__(self, found: Decomposition, wanted: Wanted, exact: bool) -> None:
        self.n = len(found.values)
        self.wanted = wanted
        self.rounding = 0.0
        self._found = found
        self._same = SAME[exact]
        self._steps = 0
        self._complete = False
        self._residuals: Floats | None = None

    def ask(self) -> Tensor:
        """The wanted eigenvectors, and the random vector where these do not span it."""
        return self._found.vectors if self._whole else torch.cat([self._found.vectors, self._found.probe[None]])

    def tell(self, products: Tensor) -> None:
        """Their products with the operator."""
        self._steps += len(products)
        theta = torch.from_numpy(self._wanted_values()).to(products)
        residuals = products[: len(theta)] - theta[:, None] * self._found.vectors
        self._residuals = torch.linalg.vector_norm(residuals, dim=1).cpu().numpy()
        image = (self._found.vectors @ self._found.probe) @ products if self._whole else products[-1]
        off = torch.linalg.vector_norm(image - self._found.image)
        self._complete = bool(off <= self._same * torch.linalg.vector_norm(self._found.image))

    @property
    def proposes(self) -> bool:
        """True once the pairs were multiplied."""
        return self._residuals is not None

    @property
    def complete(self) -> bool:
        """Whether all eigenvalues are known to be the operator's."""
        return self._complete

    @property
    def diagonal(self) -> Tensor:
        """(n,) float64 of the matrix."""
        return self._found.diagonal

    def candidates(self) -> Candidates:
        """The wanted pairs; without a bound before their product."""
        theta, values = self._wanted_values(), self._found.values
        keep = self.wanted.indices(values)
        residuals = np.full(len(theta), np.inf) if self._residuals is None else self._residuals
        distances = np.abs(theta - values[neighbours(values, keep)])
        return Candidates(
            values=theta,
            vectors=self._found.vectors,
            residuals=residuals,
            gaps=known_gaps(distances, residuals, np.zeros(len(theta))),
            ends=self.wanted.ends(len(theta)),
            norm=float(np.abs(values).max()),
            spectrum=values[::-1].copy() if self._complete else None,
            searches={},
            steps=self._steps,
            steepest=self._steepest(),
        )

    @property
    def _whole(self) -> bool:
        return len(self._found.vectors) == self.n

    def _steepest(self) -> Tensor | None:
        """The random vector's image: of its directions those of large eigenvalues are left."""
        values, length = self._found.values, torch.linalg.vector_norm(self._found.image)
        among = int(np.abs(values).argmax()) in self.wanted.indices(values)
        return None if among or not length > 0.0 else (self._found.image / length)[None]

    def _wanted_values(self) -> Floats:
        return self._found.values[self.wanted.indices(self._found.values)]
