"""A small network as the checks see it, a wrong second derivative of a known size, and short ways to make both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerhess.checks import SelfCheck
from layerhess.checks.forward_trace import Trace
from layerhess.curvature.data_pass import FULL
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective

CPU = torch.device("cpu")
CE = nn.CrossEntropyLoss()


def mlp(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *(between or [nn.Tanh()]), nn.Linear(5, 3)).double()


X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(9) % 3


def objective(model: nn.Module | None = None, loss: Any = CE, data: Any = None, **options: Any) -> Objective:
    return Objective(model or mlp(), data or (X, Y), loss, **options)


def full_of(made: Objective) -> Any:
    return make_block(FULL, made.parameters)


NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def smooth(coarsest: torch.dtype, kinks: bool = False) -> SelfCheck:
    return SelfCheck(Trace(coarsest=coarsest, nodes={"ReluBackward0"} if kinks else set()))


def blocks_of(made: Any) -> dict[str, Any]:
    return {"first": make_block("first", {n: made.parameters[n] for n in NAMES[:2]}),
            "last": make_block("last", {n: made.parameters[n] for n in NAMES[2:]}), FULL: full_of(made)}  # fmt: skip


class BentTanh(torch.autograd.Function):
    """tanh with a right first derivative, and a second one that is ``wrong`` times too large."""

    wrong = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return BentSlope.apply(g, *ctx.saved_tensors)


class BentSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return g * (1 - x.tanh() ** 2)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        g, x = ctx.saved_tensors
        t = x.tanh()
        return h * (1 - t**2), BentTanh.wrong * h * g * (-2 * t * (1 - t**2))


class Bent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BentTanh.apply(x)  # type: ignore[no-any-return]


class Moving(nn.Module):
    """Its state changes in every call, and its output with it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1.0 + 0.1 * self.calls)
