"""A small network of Tanh and twelve examples of three classes in two unequal batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def net(*tail: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *tail).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 4, generator=generator).double()
    return [(x[:7], torch.arange(7) % 3), (x[7:], torch.arange(5) % 3)]


def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])
