"""Outputs, targets and weights of four classes, and a model whose output is its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4


class Scaled(nn.Module):
    """Its output is its input times one parameter, which is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def classes(*shape: int, ignored: int | None = None) -> Tensor:
    target = torch.randint(0, CLASSES, shape)
    if ignored is not None:
        target.view(-1)[[0, 2, 5, 6]] = ignored  # all of the batch of one, parts of the others
    return target
