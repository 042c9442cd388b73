"""Where to look next, by an operator that resembles the one asked for and costs little: proposals, and no proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.linalg.eigen.krylov_basis import Basis, row_norms
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY, excludes
from layerhess.linalg.eigen.process import Floats, Search

POWERS = 3  # of it that a residual is multiplied by
BEYOND = 0.05  # of an eigenvalue, see far_excluded
TINY = 1e-300  # no length is divided by less


@dataclass(frozen=True)
class Guide:
    """An operator B that resembles A. A search that asks dearly and seldom takes its advice beside random vectors.

    Attributes:
        multiply: (s, n) rows -> their products with B; None where it has no more to say.
        starts: (k, n) eigenvectors of B, the largest first.
    """

    multiply: Callable[[Tensor], Tensor | None]
    starts: Tensor

    def ahead(self, basis: Basis, values: Floats, coefficients: Tensor, allowed: Floats, room: int) -> Tensor:
        """Up to ``room`` unit rows B r, B^2 r, ... of residuals r of A, less their parts in the span of the basis.

        They are about what the next steps would add: several steps in one, as in s-step Krylov methods (Chronopoulos &
        Gear 1989), with B in the place of A.

        Args:
            values, coefficients: of k Ritz pairs. allowed: (k,) residuals at which one needs no more.
        """
        residuals = basis.residuals(values, coefficients)
        rows = residuals[torch.from_numpy(row_norms(residuals) > allowed).to(residuals.device)][: max(0, room)]
        made: list[Tensor] = []
        for _ in range(min(POWERS, room // len(rows)) if len(rows) else 0):
            products = self.multiply(rows)
            if products is None:
                break
            rows = products - (products @ basis.q.T) @ basis.q
            rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(TINY)
            made.append(rows)
        found = torch.cat(made) if made else residuals[:0]
        return found[torch.isfinite(found).all(dim=1)]


def far_excluded(search: Search, norm: float) -> bool:
    """Have the random vectors alone ruled out, at half the probability, what lies well above the largest Ritz value?

    Where B's top eigenvector is nearly one of A, but not A's top one, its residual may be small at once. A search from
    a single random vector has ruled out 1.00 to 1.1 times its eigenvalue when it ends, one of four usually 1.01. After
    a restart it is not asked for: the space of the random vectors is no longer at hand.
    """
    reach = BEYOND * max(abs(search.largest), 0.1 * norm)
    return excludes(search, search.largest + reach, 0.5 * MISSED_PROBABILITY)
