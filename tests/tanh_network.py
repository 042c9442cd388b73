"""A small network of Tanh on twelve examples, and one product of its Hessian, which all spellings must share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import layerhess as lh


def mlp(*extra: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *extra, nn.Linear(5, 3)).to(dtype)


def pair(n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype), torch.arange(n) % 3


X, Y = pair()
CE = nn.CrossEntropyLoss()


def product(objective: lh.Objective) -> Tensor:
    return lh.Hessian(objective).matvec(torch.linspace(-1, 1, objective.numel, dtype=objective.dtype))


EXPECTED = product(lh.Objective(mlp(), (X, Y), CE))


def assert_same(found: Tensor, expected: Tensor = EXPECTED) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
