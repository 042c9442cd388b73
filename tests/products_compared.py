"""A seeded vector, and how far a product is from the expected one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOOR = 1e-14  # of the norm of the whole matrix: what rounding leaves of a block that cancels


def distance(found: Tensor, expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found.detach().double().numpy().ravel() - expected.ravel()))


def random_vector(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
