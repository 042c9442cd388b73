"""Softmax with the derivative of its backward pass in closed form, for attention written in plain operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.double_backward.transforms import is_batched

SURE = 0.5  # a probability above it loses digits in 1 - p


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
            return spread(gradients[0], y, ctx.dim, likeliest(y, ctx.dim)), None
        return _Back.apply(gradients[0], x, y.detach(), ctx.dim), None  # type: ignore[no-untyped-call]


class _Back(torch.autograd.Function):
    """Y g with Y = diag(y) - y y', the derivative of softmax and symmetric.

    The derivative of <h, Y g> is Y h in g, and in x, since dy = Y dx, it is Y w with w = (h - y'h) (g - y'g). Where
    that is to be differentiated again, y is made from x once more, by operations that autograd follows.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, y: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(g, x, y)
        return spread(g, y, dim, likeliest(y, dim))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g, x, y = ctx.saved_tensors
        h = gradients[0]
        if torch.is_grad_enabled():
            y = torch.softmax(x, ctx.dim)
        top = likeliest(y, ctx.dim)
        own = spread(h, y, ctx.dim, top)
        bent = spread(centred(h, y, ctx.dim, top) * centred(g, y, ctx.dim, top), y, ctx.dim, top)
        return own, bent, None, None


Likeliest = tuple[Tensor, Tensor]


def likeliest(y: Tensor, dim: int) -> Likeliest:
    """Where the largest y is, and whether it is more than 1/2."""
    largest, top = y.detach().max(dim, keepdim=True)
    return top, largest > SURE


def spread(g: Tensor, y: Tensor, dim: int, top: Likeliest) -> Tensor:
    """Y g = y (g - y'g) for probabilities y, with :func:`likeliest` of them; its entries sum to zero."""
    if torch.is_grad_enabled():
        made = y * (g - (g * y).sum(dim, keepdim=True))
    else:
        made = torch.ops.aten._softmax_backward_data(g, y, dim, y.dtype)
    return balanced(made, dim, top)


def balanced(rows: Tensor, dim: int, top: Likeliest) -> Tensor:
    """Rows that sum to zero, where one y is more than 1/2 with minus the sum of the others there.

    As a difference, like g - y'g, that entry has no digits left where y is almost 1; the others have.
    """
    place, sure = top
    others = rows.scatter(dim, place, 0.0).sum(dim, keepdim=True)
    return rows.scatter(dim, place, torch.where(sure, -others, rows.gather(dim, place)))


def centred(g: Tensor, y: Tensor, dim: int, top: Likeliest) -> Tensor:
    """g - y'g, whose mean under y is zero; made of the others where one y is more than 1/2, as in :func:`balanced`."""
    made = g - (g * y).sum(dim, keepdim=True)
    place, sure = top
    others = (made * y).scatter(dim, place, 0.0).sum(dim, keepdim=True)
    return made.scatter(dim, place, torch.where(sure, -others / y.gather(dim, place), made.gather(dim, place)))


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.nn.functional.softmax``, ``torch.softmax`` and ``Tensor.softmax`` (their third argument is the dtype)."""
    if isinstance(_stacklevel, torch.dtype):
        dtype = _stacklevel
    if dim is None or dtype not in (None, input.dtype):
        return torch.nn.functional.softmax(input, dim, dtype=dtype)
    made: Tensor = _Softmax.apply(input, dim)  # type: ignore[no-untyped-call]
    return made
