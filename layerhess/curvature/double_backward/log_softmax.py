"""Log-softmax whose derivatives keep their digits where a class is nearly certain."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.softmax import balanced, centred, likeliest
from layerhess.curvature.double_backward.transforms import is_batched


class _LogSoftmax(torch.autograd.Function):
    """z = log softmax(x) along a dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        z = torch.log_softmax(x, dim)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (z,) = ctx.saved_tensors
        if not torch.is_grad_enabled() or is_batched(gradients[0]):
            return _back(gradients[0], z.exp(), ctx.dim), None
        return _Back.apply(gradients[0], z, ctx.dim), None  # type: ignore[no-untyped-call]


class _Back(torch.autograd.Function):
    """g - (1'g) y of y = exp(z), whose derivative along h is h - y'h in g, and -(1'g) y h in z."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, z: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(g, z)
        return _back(g, z.exp(), dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g, z = ctx.saved_tensors
        h, y = gradients[0], z.exp()
        return centred(h, y, ctx.dim, likeliest(y, ctx.dim)), -g.sum(ctx.dim, keepdim=True) * y * h, None


def _back(g: Tensor, y: Tensor, dim: int) -> Tensor:
    return balanced(g - g.sum(dim, keepdim=True) * y, dim, likeliest(y, dim))


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """``torch.nn.functional.log_softmax``, ``torch.log_softmax`` and ``Tensor.log_softmax``."""
    if isinstance(_stacklevel, torch.dtype):
        dtype = _stacklevel
    if dim is None or dtype not in (None, input.dtype):
        return F.log_softmax(input, dim, dtype=dtype)
    made: Tensor = _LogSoftmax.apply(input, dim)  # type: ignore[no-untyped-call]
    return made
