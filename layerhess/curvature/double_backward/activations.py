"""Activations with stored first and second derivatives: each product then costs three multiplications.

torch differentiates these activations twice through a dozen elementwise operations, again at every product. Here both
derivatives of f are computed once, when the gradient's graph is made: f' in backward, and f'' as the derivative of f'.
And none is a difference like torch's 1 - tanh(x)^2, which has few digits left where a unit saturates. Not so sigmoid:
its p (1 - p) must have the same rounded 1 - p as a loss that divides by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Derivatives = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> f'(x), f''(x)

_TANH_SCALE, _TANH_CUBIC = math.sqrt(2.0 / math.pi), 0.044715  # Hendrycks & Gimpel 2016, GELU by tanh


class _Pointwise(torch.autograd.Function):
    """y = f(x), entry by entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], derivatives: Derivatives) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivatives = derivatives
        ctx.first = None
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        slope = ctx.first  # computed in forward; enough where it is not differentiated again
        if slope is None or torch.is_grad_enabled():
            slope = _Slope.apply(x, ctx.derivatives)  # type: ignore[no-untyped-call]
            ctx.first = slope.detach()
        return gradients[0] * slope, None, None


class _Slope(torch.autograd.Function):
    """f'(x), whose derivative is known: f''(x), made from x once more where that is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivatives: Derivatives) -> Tensor:
        first, second = derivatives(x)
        ctx.derivatives = derivatives
        ctx.save_for_backward(x, second)
        return first

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, second = ctx.saved_tensors
        if torch.is_grad_enabled():
            _, second = ctx.derivatives(x)
        return gradients[0] * second, None


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``torch.nn.functional.gelu``."""
    derivatives = _of_gelu_by_tanh if approximate == "tanh" else _of_gelu
    return _applied(input, lambda x: F.gelu(x, approximate=approximate), derivatives)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``torch.nn.functional.silu``."""
    if inplace:
        return F.silu(input, inplace=True)
    return _applied(input, F.silu, _of_silu)


def tanh(input: Tensor) -> Tensor:
    """``torch.tanh``."""
    return _applied(input, torch.tanh, _of_tanh)


def logsigmoid(input: Tensor) -> Tensor:
    """``torch.nn.functional.logsigmoid``."""
    return _applied(input, F.logsigmoid, _of_logsigmoid)


def _applied(x: Tensor, function: Callable[[Tensor], Tensor], derivatives: Derivatives) -> Tensor:
    made: Tensor = _Pointwise.apply(x, function, derivatives)  # type: ignore[no-untyped-call]
    return made


def _of_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    below = 0.5 * torch.erfc(-x / math.sqrt(2.0))
    return below + x * density, density * (2.0 - x * x)


def _of_gelu_by_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    square = x * x
    u = _TANH_SCALE * x * (1.0 + _TANH_CUBIC * square)
    t, bend = torch.tanh(u), 4.0 * torch.sigmoid(2.0 * u) * torch.sigmoid(-2.0 * u)  # 1 - t^2, without cancellation
    inner = _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBIC * square)
    first = 0.5 * (1.0 + t) + 0.5 * x * bend * inner
    second = bend * inner + x * bend * (3.0 * _TANH_SCALE * _TANH_CUBIC * x - t * inner * inner)
    return first, second


def _of_silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s, rest = torch.sigmoid(x), torch.sigmoid(-x)
    return s * (1.0 + x * rest), s * rest * (2.0 + x * (rest - s))


def _of_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    bend = torch.cosh(x).pow(-2.0)
    return bend, -2.0 * torch.tanh(x) * bend


def _of_logsigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    s, rest = torch.sigmoid(x), torch.sigmoid(-x)
    return rest, -s * rest
