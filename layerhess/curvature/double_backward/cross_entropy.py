"""Log-softmax, and cross entropy made of it, whose derivatives keep their digits where a class is nearly certain."""

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


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.cross_entropy``, of log_softmax above; other input and old arguments are left to torch."""
    likely = target.is_floating_point()
    odd = size_average is not None or reduce is not None or reduction not in ("none", "sum", "mean") or not input.dim()
    if odd or not 0.0 <= label_smoothing <= 1.0 or (likely and target.shape != input.shape):
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    dim = min(input.dim() - 1, 1)
    classes = input.shape[dim]
    z = log_softmax(input, dim)
    by_class = None if weight is None else weight.view([-1 if d == dim else 1 for d in range(z.dim())])
    if likely:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes if label_smoothing > 0.0 else target
        losses = -(z * target if by_class is None else z * target * by_class).sum(dim)
        if reduction == "mean":
            return losses.sum() / (input.numel() / classes)
        return losses.sum() if reduction == "sum" else losses
    hard = F.nll_loss(z, target, weight, None, ignore_index, None, reduction)
    if label_smoothing == 0.0:
        return hard
    ignored = target == ignore_index
    smooth = -(z if by_class is None else z * by_class).sum(dim).masked_fill(ignored, 0.0)
    if reduction == "mean":
        known = target.masked_fill(ignored, 0)
        counts = torch.ones_like(smooth) if weight is None else weight[known]
        smooth = smooth.sum() / counts.masked_fill(ignored, 0.0).sum()
    elif reduction == "sum":
        smooth = smooth.sum()
    return (1.0 - label_smoothing) * hard + (label_smoothing / classes) * smooth
