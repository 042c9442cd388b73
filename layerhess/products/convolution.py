"""Convolutions as three bilinear maps that are each other's derivatives, of which only what is asked for is computed.

torch's second derivative of a convolution makes the derivative in the kernel whether or not anybody wants it, by a
convolution whose images are the channels and whose kernels are the images: two to three times the price of the one that
was wanted. A product with the block of one layer wants it nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerhess.products.layers import CONVOLUTIONS, per_dimension
from layerhess.products.twice import is_batched

Numbers = int | tuple[int, ...]


@dataclass(frozen=True)
class _Geometry:
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def is_of(self, n: int) -> bool:
        """Whether all is given for n dimensions."""
        return len(self.stride) == len(self.padding) == len(self.dilation) == n

    def output(self, x: Tensor, w: Tensor, offset: Tensor | None = None) -> Tensor:
        """y = x * w + offset."""
        none = [0] * len(self.stride)
        return torch.convolution(x, w, offset, self.stride, self.padding, self.dilation, False, none, self.groups)

    def input_gradient(self, g: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        """The transpose of x -> x * w at g; ``shape`` is that of x."""
        made: Tensor = self._transposes(g, g.new_empty(1).expand(shape), w, [True, False, False])[0]
        return made

    def weight_gradient(self, g: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """The transpose of w -> x * w at g; ``shape`` is that of w."""
        made: Tensor = self._transposes(g, x, g.new_empty(1).expand(shape), [False, True, False])[1]
        return made

    def _transposes(self, g: Tensor, x: Tensor, w: Tensor, wanted: list[bool]) -> Any:
        none = [0] * len(self.stride)
        return torch.ops.aten.convolution_backward(
            g, x, w, None, self.stride, self.padding, self.dilation, False, none, self.groups, wanted
        )


class _Output(torch.autograd.Function):
    """x * w + offset."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, offset: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return geometry.output(x, w, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,), (x, w), wanted = gradients, ctx.saved_tensors, _wanted(ctx)
        return (
            _input_gradient(g, w, x.shape, ctx.geometry) if wanted[0] else None,
            _weight_gradient(g, x, w.shape, ctx.geometry) if wanted[1] else None,
            g.sum(dim=[0, *range(2, g.ndim)]) if wanted[2] else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.geometry = geometry
        return geometry.input_gradient(g, w, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,), (g, w), wanted = gradients, ctx.saved_tensors, _wanted(ctx)
        return (
            _output(x, w, None, ctx.geometry) if wanted[0] else None,
            _weight_gradient(g, x, w.shape, ctx.geometry) if wanted[1] else None,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.geometry = geometry
        return geometry.weight_gradient(g, x, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (w,), (g, x), wanted = gradients, ctx.saved_tensors, _wanted(ctx)
        return (
            _output(x, w, None, ctx.geometry) if wanted[0] else None,
            _input_gradient(g, w, x.shape, ctx.geometry) if wanted[1] else None,
            None,
            None,
        )


def _output(x: Tensor, w: Tensor, offset: Tensor | None, geometry: _Geometry) -> Tensor:
    if not torch.is_grad_enabled() or is_batched(x) or is_batched(w):
        return geometry.output(x, w, offset)
    made: Tensor = _Output.apply(x, w, offset, geometry)  # type: ignore[no-untyped-call]
    return made


def _input_gradient(g: Tensor, w: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
    if not torch.is_grad_enabled() or is_batched(g):
        return geometry.input_gradient(g, w, shape)
    made: Tensor = _InputGradient.apply(g, w, shape, geometry)  # type: ignore[no-untyped-call]
    return made


def _weight_gradient(g: Tensor, x: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
    if not torch.is_grad_enabled() or is_batched(g):
        return geometry.weight_gradient(g, x, shape)
    made: Tensor = _WeightGradient.apply(g, x, shape, geometry)  # type: ignore[no-untyped-call]
    return made


def _wanted(ctx: Any) -> list[bool]:
    """Which derivatives lead to what this backward pass is for; all that may, where torch does not say."""
    wanted = list(ctx.needs_input_grad)
    ask = getattr(torch._C, "_will_engine_execute_node", None)
    if ask is None:
        return wanted
    for i, (node, _) in enumerate(ctx.next_functions):
        if wanted[i] and node is not None:
            try:
                wanted[i] = ask(node)
            except RuntimeError:  # a leaf, which torch.autograd.grad was asked for; it answers False for the others
                continue
    return wanted


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
    geometry = _Geometry(
        per_dimension(stride, n),
        [] if isinstance(padding, str) else per_dimension(padding, n),
        per_dimension(dilation, n),
        groups,
    )
    if not _known(input, weight, n) or not geometry.is_of(n):
        return function(input, weight, bias, stride, padding, dilation, groups)
    # A leaf cannot be asked whether it is wanted; a view of it can.
    offset = None if bias is None else bias.view_as(bias)
    return _output(input, weight.view_as(weight), offset, geometry)


conv1d, conv2d, conv3d = (partial(_convolution, function) for function in CONVOLUTIONS)


def _known(x: Tensor, w: Tensor, n: int) -> bool:
    """Whether there is something to differentiate, of the usual shapes and kinds; all else is torch's to judge."""
    usual = x.ndim == w.ndim == n + 2 and x.dtype == w.dtype and type(w) in (Tensor, torch.nn.Parameter)
    moves = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    return usual and moves and not torch.is_autocast_enabled(x.device.type)
