"""A network of Tanh and seventy examples of three classes, together or in three unequal batches."""

from __future__ import annotations

import torch
from torch import nn


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3)).double()


def examples(n: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=generator).double(), torch.randint(0, 3, (n,), generator=generator)


def batches(sizes: tuple[int, ...] = (30, 30, 10)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = examples(sum(sizes))
    return list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))
