"""Symmetric matrices on which random probing is tried, and a driver that multiplies with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from references.spectra import Matrix, rotated


def _low_rank_and_noise(n: int) -> Matrix:
    values = 0.1 * np.random.default_rng(0).standard_normal(n)
    values[:5] = [50.0, 20.0, 10.0, 5.0, 3.0]
    return rotated(values, 1)


def _identity_like(n: int) -> Matrix:
    return 3.0 * np.eye(n) + 0.2 * rotated(np.random.default_rng(1).standard_normal(n), 2)


def _zero_trace(n: int) -> Matrix:
    values = np.random.default_rng(2).standard_normal(n)
    return rotated(values - values.mean(), 5)


FAMILIES = {
    "low rank and noise": _low_rank_and_noise,
    "identity-like": _identity_like,
    "indefinite": lambda n: rotated(np.random.default_rng(3).standard_normal(n) + 0.5, 3),
    "fast decay": lambda n: rotated(np.arange(1.0, n + 1) ** -2, 4),
    "slow decay": lambda n: rotated(np.arange(1.0, n + 1) ** -0.5, 4),
    "zero trace": _zero_trace,
}


def rank_three(n: int) -> Matrix:
    """Eigenvalues 5, 2, -1 and zeros: trace 6."""
    values = np.zeros(n)
    values[:3] = [5.0, 2.0, -1.0]
    return rotated(values, 6)


def driven(process: Any, matrix: Matrix, limit: int = 5000) -> tuple[Any, int]:
    """The estimate, and the products it took."""
    products = 0
    columns = torch.from_numpy(matrix)
    while not process.done:
        rows = process.ask()
        assert rows.ndim == 2 and len(rows) > 0 and rows.dtype == torch.float64
        products += len(rows)
        assert products <= limit
        process.tell(rows @ columns)
    return process.estimate(), products
