"""Eigenpairs that a density's first random vector finds on its way, and what the other vectors have of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Source
from layerhess.linalg.estimates import Floats

FEWEST = 3  # random vectors: the first is no sample then, and two are the least that scatter
KNOWN = 1e-2  # residual over |eigenvalue|: what functions of it are off by is of second order


@dataclass(frozen=True)
class KnownPairs:
    """Eigenvalues with their eigenvectors.

    Attributes:
        values, bounds: (K,) Ritz values and residuals. vectors: (K, n) float64, orthonormal.
    """

    values: Floats
    bounds: Floats
    vectors: Tensor

    def overlaps(self, probes: int, draw: Source) -> Floats:
        """(probes, K) squared products of the random vectors with these."""
        seen = [(self.vectors @ draw(probe)).square().numpy(force=True) for probe in range(probes)]
        return np.array(seen).reshape(probes, len(self.values))


def known_pairs(alpha: Floats, beta: Floats, last: float, basis: Tensor) -> KnownPairs:
    """The Ritz pairs of one Lanczos run whose residual is within a hundredth of the eigenvalue.

    Whether such a vector belongs to one eigenvalue or mixes close ones makes no difference to functions of the
    spectrum, as long as it does not depend on the random vectors that are averaged over. Further copies of a multiple
    eigenvalue stay in the rest of the space.

    Args:
        alpha, beta: (m,), (m - 1,) of the run. last: length of what was left after the last step: the residual of a
            Ritz pair is that times the last component of its vector (Parlett 1998, section 13.2). basis: (m, n).
    """
    values, inner = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    residuals = last * np.abs(inner[-1])
    found = residuals <= KNOWN * np.abs(values)
    turned = torch.from_numpy(inner[:, found].T.copy()).to(basis)
    return KnownPairs(values[found], residuals[found], turned @ basis)
