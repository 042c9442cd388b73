"""Softmax with the derivative of its backward pass in closed form, for attention written in plain operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.double_backward.transforms import is_batched


class _Softmax(torch.autograd.Function):
    """y = softmax(x) along a dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        y = torch.softmax(x, dim)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, y = ctx.saved_tensors
        if not torch.is_grad_enabled() or is_batched(gradients[0]):
            return _back(gradients[0], y, ctx.dim), None
        return _Back.apply(gradients[0], x, y.detach(), ctx.dim), None  # type: ignore[no-untyped-call]


class _Back(torch.autograd.Function):
    """Y g with Y = diag(y) - y y', the derivative of softmax and symmetric.

    The derivative of <h, Y g> is Y h in g, and in x, since dy = Y dx, it is Y w with w = h (g - y'g) - (y'h) g. Where
    that is to be differentiated again, y is made from x once more, by operations that autograd follows.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, y: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(g, x, y, g - (g * y).sum(dim, keepdim=True))
        return _back(g, y, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g, x, y, centred = ctx.saved_tensors
        h = gradients[0]
        if torch.is_grad_enabled():
            y = torch.softmax(x, ctx.dim)
            centred = g - (g * y).sum(ctx.dim, keepdim=True)
        own = _back(h, y, ctx.dim)
        mean = (h * y).sum(ctx.dim, keepdim=True)
        bent = _back(h * centred - mean * g, y, ctx.dim)
        return own, bent, None, None


def _back(g: Tensor, y: Tensor, dim: int) -> Tensor:
    if torch.is_grad_enabled():
        return y * (g - (g * y).sum(dim, keepdim=True))
    made: Tensor = torch.ops.aten._softmax_backward_data(g, y, dim, y.dtype)
    return made


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.nn.functional.softmax``, ``torch.softmax`` and ``Tensor.softmax`` (their third argument is the dtype)."""
    if isinstance(_stacklevel, torch.dtype):
        dtype = _stacklevel
    if dim is None or dtype not in (None, input.dtype):
        return torch.nn.functional.softmax(input, dim, dtype=dtype)
    made: Tensor = _Softmax.apply(input, dim)  # type: ignore[no-untyped-call]
    return made
