"""Custom functions with right derivatives, and functions and modules whose gradient is not that of what they compute.

Each table has ``make(width) -> module`` for tensors (..., width).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Call(nn.Module):
    """A function as a module, so that the network stays a list of stages."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3 / 3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x * x


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x > 0).to(g.dtype)


class OwnSwish(torch.autograd.Function):
    """x sigmoid(x), whose saved sigmoid is recomputed, so that the backward can be differentiated."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * (s + x * s * (1 - s))


class OwnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return g @ weight, g.flatten(0, -2).t() @ x.flatten(0, -2)


class OwnLinearLayer(nn.Module):
    function: type[torch.autograd.Function] = OwnLinear

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x, self.weight)  # type: ignore[no-any-return]


# --- and others, whose gradient is not the gradient of what they compute, or whose second derivative is not its own ---


class SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class ClampedSpike(torch.autograd.Function):
    """A step with the derivative of a steep sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class MaxScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp_min(-1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 0.9 * g


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.5 * g


class FirstOnly(torch.autograd.Function):
    """tanh with a right first derivative that is a constant to the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.kept = y.detach()
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.kept**2)


class WrongTranspose(OwnLinear):
    """A linear map whose backward is another one's: the gradient of nothing."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return g @ weight.t(), g.flatten(0, -2).t() @ x.flatten(0, -2)


class WrongTransposeLayer(OwnLinearLayer):
    function = WrongTranspose


def _rounded(x: Tensor) -> Tensor:
    return x + ((4 * x).round() / 4 - x).detach()


def _hooked(x: Tensor) -> Tensor:
    x = x * 1.0
    if x.requires_grad:
        x.register_hook(lambda g: 1.5 * g)
    return x


def _half_measured(x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = x.sigmoid()
    return gate * x


class Quantised(OwnLinearLayer):
    """Quantisation-aware training: the weight is rounded, its gradient goes straight through."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _rounded(self.weight))


class Normed(OwnLinearLayer):
    """A weight over its own norm, which is held constant, as DoRA has it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.length = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.weight.norm(dim=1, keepdim=True).detach()
        return F.linear(x, self.length[:, None] * self.weight / norm)


WRONG: dict[str, Callable[[int], nn.Module]] = {
    "straight-through sign": lambda width: Call(SignSTE.apply),
    "surrogate spike": lambda width: Call(ClampedSpike.apply),
    "scaled backward": lambda width: Call(MaxScaled.apply),
    "gradient reversal": lambda width: Call(Reversed.apply),
    "first derivative only": lambda width: Call(FirstOnly.apply),
    "asymmetric backward": WrongTransposeLayer,
    "straight-through rounding": lambda width: Call(_rounded),
    "tensor hook": lambda width: Call(_hooked),
    "no_grad gate": lambda width: Call(_half_measured),
    "detached centre": lambda width: Call(lambda x: x * (x - x.mean(-1, keepdim=True).detach())),
    "quantised weight": Quantised,
    "detached norm": Normed,
}

STOPPED = ("straight-through rounding", "no_grad gate", "detached centre", "quantised weight", "detached norm")

RIGHT: dict[str, Callable[[int], nn.Module]] = {
    "cube": lambda width: Call(lambda x: Cube.apply(x.clamp(-3, 3))),
    "own relu": lambda width: Call(OwnRelu.apply),
    "own swish": lambda width: Call(OwnSwish.apply),
    "own linear": OwnLinearLayer,
}
