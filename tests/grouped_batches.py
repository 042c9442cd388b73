"""A small network on eighteen unequal batches, which serve as groups for sampling errors; groups that are dealt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerhess.analysis import example_groups
from layerhess.objective.example_digests import by_example
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


@contextmanager
def whole_batches() -> Iterator[None]:
    """Inside it no examples are dealt into groups where there are sixteen batches or more, as with many examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_groups, "DEALT", 0)
        yield


def dealt(x: Tensor, y: Tensor, groups: int = 16) -> list[tuple[Tensor, Tensor]]:
    """The groups into which these examples are dealt; what makes them groups is tested for itself."""
    dealing = example_groups.Dealing([by_example((x, y))], 0, groups)
    ((_, places),) = dealing.placed(iter([(x, y)]))
    return [(x[torch.from_numpy(places == place)], y[torch.from_numpy(places == place)]) for place in range(groups)]


def jackknifed(sums: np.ndarray, counts: np.ndarray) -> float:
    """Cochran 1977, eq. 6.13, group by group."""
    ratio, groups = sums.sum() / counts.sum(), len(sums)
    squares = sum((s - ratio * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return math.sqrt(groups * squares / (groups - 1)) / float(counts.sum())
