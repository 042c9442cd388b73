"""Autograd functions that cannot be differentiated twice, or whose second derivative is wrong, and models with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Once(torch.autograd.Function):
    """A sine that may be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Cut(torch.autograd.Function):
    """A sine whose backward pass hides from autograd what it depends on, as a hand-written kernel does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient * ctx.saved_tensors[0].cos()).detach()


class Applies(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.function.apply(x))


def kinked(function: Any) -> nn.Module:
    """With ReLU, so that finite differences do not apply."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Applies(function), nn.Linear(5, 3))
