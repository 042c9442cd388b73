"""Normalisation over some dimensions, with the derivative of its backward pass in closed form.

A third of the cost of torch's second derivative, and right at any order: torch's third derivative takes the mean and
the rate for constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from layerhess.curvature.double_backward.transforms import is_batched, is_transformed


class Kernels(Protocol):
    """torch's kernels for normalising over ``dims``."""

    dims: tuple[int, ...]
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x - mean) r with r = (variance + eps)^(-1/2); the mean; r. The last two with dimensions of size 1."""

    def backward(self, g: Tensor, x: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
        """r P g, see :class:`_Back`."""


class LastDimensions:
    """Those of ``torch.nn.functional.layer_norm``."""

    def __init__(self, x: Tensor, shape: Sequence[int], eps: float) -> None:
        self._shape, self.eps = list(shape), eps
        self.dims = tuple(range(x.ndim - len(self._shape), x.ndim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernels`."""
        normal, mean, rate = torch.native_layer_norm(x, self._shape, None, None, self.eps)
        return normal, mean, rate

    def backward(self, g: Tensor, x: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
        """See :class:`Kernels`."""
        made: Tensor = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(), x, self._shape, mean, rate, None, None, [True, False, False]
        )[0]
        return made


class AllButChannels:
    """Those of ``torch.nn.functional.batch_norm`` in train mode: channels are dimension 1."""

    def __init__(
        self, x: Tensor, eps: float, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
    ) -> None:
        self.eps, self._running, self._momentum = eps, (running_mean, running_var), momentum
        self.dims = (0, *range(2, x.ndim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernels`."""
        normal, mean, rate = torch.native_batch_norm(x, None, None, *self._running, True, self._momentum, self.eps)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return normal, mean.view(shape), rate.view(shape)

    def backward(self, g: Tensor, x: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
        """See :class:`Kernels`."""
        made: Tensor = torch.ops.aten.native_batch_norm_backward(
            g, x, None, None, None, mean.flatten(), rate.flatten(), True, self.eps, [True, False, False]
        )[0]
        return made


class _Normalise(torch.autograd.Function):
    """n = (x - mean) r over the kernels' dimensions, r = (variance + eps)^(-1/2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels) -> Tensor:
        normal, mean, rate = kernels.forward(x)
        ctx.kernels = kernels
        ctx.save_for_backward(x, mean, rate)  # and not what is returned, which the network may overwrite
        return normal

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, mean, rate = ctx.saved_tensors
        (g,), kernels = gradients, ctx.kernels
        if is_batched(g):
            return _projected(g, *_statistics(x, kernels), kernels.dims), None
        if not torch.is_grad_enabled():
            return kernels.backward(g, x, mean, rate), None
        return _Back.apply(g, x, mean, rate, kernels), None  # type: ignore[no-untyped-call]


class _Back(torch.autograd.Function):
    """r P g with P g = g - m(g) - n m(g n), m the mean over the normalised dimensions.

    P is symmetric. With a = m(g n), b = m(h n) and E = m(h g) - m(h) m(g) - a b the derivative of <h, r P g> is r P h
    in g and -r (r E n + a r P h + b r P g) in x, since dr = -r^2 m(n dx) and dn = r P dx. Where that is to be
    differentiated again, n and r are made from x once more, by operations that autograd follows.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, mean: Tensor, rate: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels = kernels
        back = kernels.backward(g, x, mean, rate)
        normal = (x - mean) * rate
        a, level = (part.mean(kernels.dims, keepdim=True) for part in (g * normal, g))
        ctx.save_for_backward(g, x, normal, mean, rate, back, a, level)
        return back

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g, x, normal, mean, rate, back, a, level = ctx.saved_tensors
        (h,), kernels, dims = gradients, ctx.kernels, ctx.kernels.dims
        if torch.is_grad_enabled():
            normal, rate = _statistics(x, kernels)
            own, back = (_projected(part, normal, rate, dims) for part in (h, g))
            a, level = (part.mean(dims, keepdim=True) for part in (g * normal, g))
        else:
            own = kernels.backward(h, x, mean, rate)
        b, form, height = (part.mean(dims, keepdim=True) for part in (h * normal, h * g, h))
        e = rate * (form - height * level - a * b)
        if torch.is_grad_enabled():
            bent = -rate * (normal * e + own * a + back * b)
        else:
            bent = (normal * e).addcmul_(own, a).addcmul_(back, b).mul_(-rate)
        return own, bent, None, None, None


def _statistics(x: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """n and r by operations that are differentiable at any order."""
    centred = x - x.mean(kernels.dims, keepdim=True)
    rate = (centred.square().mean(kernels.dims, keepdim=True) + kernels.eps).rsqrt()
    return centred * rate, rate


def _projected(g: Tensor, normal: Tensor, rate: Tensor, dims: tuple[int, ...]) -> Tensor:
    return rate * (g - g.mean(dims, keepdim=True) - normal * (g * normal).mean(dims, keepdim=True))


def normalised(x: Tensor, kernels: Kernels) -> Tensor:
    """n of x. Inside transforms of torch.func and forward-mode differentiation by plain operations."""
    if is_transformed():
        return _statistics(x, kernels)[0]
    made: Tensor = _Normalise.apply(x, kernels)  # type: ignore[no-untyped-call]
    return made
