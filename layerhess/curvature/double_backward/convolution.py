"""Convolutions whose second derivative computes only what is asked for: three bilinear maps, each other's derivatives.

torch's second derivative of a convolution always computes the derivative in the kernel too, by a convolution whose
images are the channels and whose kernels are the images. That costs two to three times as much as the derivative that
is needed. A product with the block of one layer never needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.autograd_graph import derivatives_wanted
from layerhess.curvature.double_backward.geometry import CONVOLUTIONS, Geometry, geometry
from layerhess.curvature.double_backward.transforms import is_batched

Numbers = int | tuple[int, ...]


class _Output(torch.autograd.Function):
    """x * w + offset."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, offset: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return geometry.output(x, w, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,), (x, w), wanted = gradients, ctx.saved_tensors, derivatives_wanted(ctx)
        return (
            _transpose(g, w, x.shape, True, ctx.geometry) if wanted[0] else None,
            _transpose(g, x, w.shape, False, ctx.geometry) if wanted[1] else None,
            g.sum(dim=[0, *range(2, g.ndim)]) if wanted[2] else None,
            None,
        )


class _Transpose(torch.autograd.Function):
    """The gradient of <g, x * w> in x (then the other one is w), or in w (then it is x)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, other: Tensor, shape: torch.Size, in_x: bool, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, other)
        ctx.in_x, ctx.geometry = in_x, geometry
        return geometry.input_gradient(g, other, shape) if in_x else geometry.weight_gradient(g, other, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (h,), (g, other), wanted = gradients, ctx.saved_tensors, derivatives_wanted(ctx)
        x, w = (h, other) if ctx.in_x else (other, h)
        return (
            _output(x, w, None, ctx.geometry) if wanted[0] else None,
            _transpose(g, h, other.shape, not ctx.in_x, ctx.geometry) if wanted[1] else None,
            None,
            None,
            None,
        )


def _output(x: Tensor, w: Tensor, offset: Tensor | None, geometry: Geometry) -> Tensor:
    if _needs_no_function(x, w):
        return geometry.output(x, w, offset)
    made: Tensor = _Output.apply(x, w, offset, geometry)  # type: ignore[no-untyped-call]
    return made


def _transpose(g: Tensor, other: Tensor, shape: torch.Size, in_x: bool, geometry: Geometry) -> Tensor:
    if _needs_no_function(g, other):
        return geometry.input_gradient(g, other, shape) if in_x else geometry.weight_gradient(g, other, shape)
    made: Tensor = _Transpose.apply(g, other, shape, in_x, geometry)  # type: ignore[no-untyped-call]
    return made


def _needs_no_function(*tensors: Tensor) -> bool:
    """True where nothing is differentiated again, or where only torch's own operations would keep a graph."""
    return not torch.is_grad_enabled() or any(is_batched(tensor) for tensor in tensors)


def _convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    n = CONVOLUTIONS[function]
    moved = geometry(n, stride, padding, dilation, groups)
    if moved is None or not _known(input, weight, n):
        return function(input, weight, bias, stride, padding, dilation, groups)
    # A leaf cannot be asked whether it is wanted; a view of it can.
    offset = None if bias is None else bias.view_as(bias)
    return _output(input, weight.view_as(weight), offset, moved)


conv1d, conv2d, conv3d = (partial(_convolution, function) for function in CONVOLUTIONS)


def _known(x: Tensor, w: Tensor, n: int) -> bool:
    """Whether there is something to differentiate, of the usual shapes and kinds; all else is left to torch."""
    usual = x.ndim == w.ndim == n + 2 and x.dtype == w.dtype and type(w) in (Tensor, torch.nn.Parameter)
    moves = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    return usual and moves and not torch.is_autocast_enabled(x.device.type)
