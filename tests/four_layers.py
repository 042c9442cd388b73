"""A network of four layers of similar size: a small budget solves it in several waves."""

from __future__ import annotations

import torch
from torch import nn

import layerhess as lh


def four_layers(dtype: torch.dtype) -> lh.Objective:
    """1,088 to 1,190 weights in the first three; the same numbers in every precision."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(30, 34),
        nn.Tanh(),
        nn.Linear(34, 32),
        nn.Tanh(),
        nn.Linear(32, 34),
        nn.Tanh(),
        nn.Linear(34, 4),
    ]
    x, y = torch.randn(40, 30, dtype=torch.float32).to(dtype), torch.randint(0, 4, (40,))
    return lh.Objective(nn.Sequential(*layers).float().to(dtype), (x, y), nn.CrossEntropyLoss())
