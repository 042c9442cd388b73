"""The exact diagonal of a small matrix, read with all unit vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from layerhess.linalg.stochastic.stopping import rows_at_a_time


class UnitVectors:
    """Asks for the products of all n unit vectors, which give the diagonal (n,) float64 without random error.

    Cost: n products; nothing of size n x n is kept.

    Attributes:
        diagonal: (n,). lengths: (n,) of the columns, to judge an entry's rounding.
    """

    def __init__(self, n: int, device: torch.device | None = None) -> None:
        self.n = n
        self.diagonal = torch.zeros(n, dtype=torch.float64, device=device)
        self.lengths = torch.zeros_like(self.diagonal)
        self._read = 0

    @property
    def done(self) -> bool:
        """True when every entry is known."""
        return self._read == self.n

    def ask(self) -> Tensor:
        """The next (s, n) unit vectors."""
        places = self._next()
        rows = torch.zeros((len(places), self.n), dtype=torch.float64, device=self.diagonal.device)
        rows[torch.arange(len(places)), places] = 1.0
        return rows

    def tell(self, products: Tensor) -> None:
        """Their (s, n) products."""
        places = self._next()
        self.diagonal[places] = products[torch.arange(len(places)), places]
        self.lengths[places] = torch.linalg.vector_norm(products, dim=1)
        self._read += len(places)

    def _next(self) -> Tensor:
        return torch.arange(self._read, min(self.n, self._read + rows_at_a_time(self.n)))
