"""Tests whether a matrix is zero, with two random unit vectors (one, where there is but one direction)."""

from __future__ import annotations

import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Source

TRIALS = 2


def trials(n: int) -> int:
    """How many products the test takes."""
    return min(n, TRIALS)


class ZeroTest:
    """Asks for the products of two random unit vectors and keeps the larger norm.

    Args:
        n: dimension. draw: number -> random unit vector (n,). device: of the vectors.
    """

    def __init__(self, n: int, draw: Source, device: torch.device) -> None:
        self._rows = torch.stack([draw(-1 - trial & 0x7FFFFFFF).to(device) for trial in range(trials(n))])
        self.norm = float("nan")

    def ask(self) -> Tensor:
        """(2, n) random unit vectors, or the one that there is."""
        return self._rows

    def tell(self, products: Tensor) -> None:
        """Note the larger norm."""
        self.norm = float(torch.linalg.vector_norm(products, dim=1).max())
