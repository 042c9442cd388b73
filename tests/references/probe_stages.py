"""A flat and a steep matrix, random draws, and everything that an estimator asks for of them, in order."""

from __future__ import annotations

import numpy as np
import torch

from layerhess.linalg.random_vectors import random_signs, random_unit
from references.spectra import Matrix, rotated

N = 150
FLAT = rotated(np.linspace(1.0, 2.0, N) * np.where(np.arange(N) % 2, 1.0, -1.0), seed=2)  # no method can save much
STEEP = rotated(2.0 ** -np.arange(N), seed=3)


def signs(number: int) -> torch.Tensor:
    return random_signs(N, 0, "stages", number)


def units(number: int) -> torch.Tensor:
    return random_unit(N, 0, "stages", number)


def stages(process: object, matrix: Matrix) -> list[torch.Tensor]:
    """Everything that was asked for, in order."""
    asked = []
    while not process.done:  # type: ignore[attr-defined]
        rows = process.ask()  # type: ignore[attr-defined]
        assert rows.dtype == torch.float64 and len(rows)
        asked.append(rows)
        process.tell(torch.from_numpy(rows.numpy() @ matrix))  # type: ignore[attr-defined]
        assert len(asked) < 100
    return asked


def drawn(count: int, source: object = signs, first: int = 0) -> Matrix:
    return torch.stack([source(first + i) for i in range(count)]).numpy()  # type: ignore[operator]
