"""Networks of one layer with a wrong derivative, for the self-test to find."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerhess.analysis import self_test
from layerhess.analysis.self_test import Case


def of(forward: Any) -> Case:
    """A case of one layer that computes ``forward(x w')``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(forward(self.inner(x)))
            return scores

    return Case("made up", lambda: self_test._classes(Net(), self_test._rows(8, 4)))


class WrongTwice(torch.autograd.Function):
    """A square whose gradient is right, and whose second derivative is 30 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _Doubled.apply(x) * grad  # type: ignore[no-any-return, no-untyped-call]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.6 * grad


class WrongOnce(torch.autograd.Function):
    """An identity whose gradient is 10 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.1 * grad
