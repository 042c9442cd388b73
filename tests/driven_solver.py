"""A solver driven with a NumPy matrix, and NumPy's own eigenvalues in the order that is promised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Process, Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix


def run(process: Process, matrix: Matrix, limit: int = 2000) -> int:
    """Drive a process with a NumPy matrix; returns the number of tells."""
    for step in range(1, limit + 1):
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
        if process.proposes:
            return step
    raise AssertionError("the solver did not finish")


def lanczos(matrix: Matrix, wanted: Wanted, tol: float = 1e-8, seed: int = 0, **options: int) -> Lanczos:
    n = len(matrix)
    process = Lanczos(n, wanted, tol, lambda number: random_unit(n, seed, "test", number), **options)
    run(process, matrix)
    return process


def expected(matrix: Matrix, which: str, k: int) -> Matrix:
    """NumPy's eigenvalues in the order eigsh promises."""
    ascending = np.linalg.eigvalsh(matrix)
    if which == "LA":
        return ascending[::-1][:k]
    if which == "SA":
        return ascending[:k]
    if which == "LM":
        return ascending[np.argsort(-np.abs(ascending), kind="stable")][:k]
    return np.concatenate([ascending[::-1][: k - k // 2], ascending[: k // 2]])


def draw(n: int) -> Callable[[int], Tensor]:
    def unit(number: int) -> Tensor:
        row = torch.randn(n, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        return row / row.norm()

    return unit
