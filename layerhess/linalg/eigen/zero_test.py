"""Tests whether a matrix is zero, with two random unit vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Source

TRIALS = 2


class ZeroTest:
    """Asks for the products of two random unit vectors and keeps the larger norm."""

    def __init__(self, draw: Source, device: torch.device) -> None:
        self._rows = torch.stack([draw(-1 - trial & 0x7FFFFFFF).to(device) for trial in range(TRIALS)])
        self.norm = float("nan")

    def ask(self) -> Tensor:
        """(2, n) random unit vectors."""
        return self._rows

    def tell(self, products: Tensor) -> None:
        """Note the larger norm."""
        self.norm = float(torch.linalg.vector_norm(products, dim=1).max())
