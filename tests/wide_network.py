"""A network whose graphs take megabytes, for tests of memory, with the units these are counted in."""

from __future__ import annotations

import torch
from torch import nn

import layerhess as lh

CPU = torch.device("cpu")
GIB = 1 << 30


def wide(batches: int = 2, n: int = 64) -> lh.Objective:
    """A product's graph takes a few megabytes: one that stays behind at every product would be seen at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 4))
    data = [(torch.randn(n, 16), torch.randint(0, 4, (n,))) for _ in range(batches)]
    return lh.Objective(model, data, nn.CrossEntropyLoss())
