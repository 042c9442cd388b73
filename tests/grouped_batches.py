"""A small network on eighteen unequal batches, which serve as groups for sampling errors."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from references import dense
from zoo_losses import cross_entropy_totals


def flat(parts: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([part.reshape(-1) for part in parts.values()]).numpy()


def grouped_problem() -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    sizes = [7, 12, 9, 10, 8, 11, 10, 5, 9, 9, 12, 6, 10, 8, 11, 13, 7, 10]
    return model, [(torch.randn(n, 5).double() * (1 + i % 3), torch.randint(3, (n,))) for i, n in enumerate(sizes)]


@cache
def own_matrices() -> list[np.ndarray]:
    """Every batch's own dense Hessian, times its size."""
    model, batches = grouped_problem()
    return [dense.reference_for(model, [batch], cross_entropy_totals).matrix * len(batch[1]) for batch in batches]
