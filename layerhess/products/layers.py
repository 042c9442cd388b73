"""Layers that are linear in their parameters: how a change of one moves the output, and the transpose of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS: dict[Callable[..., Tensor], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


@dataclass(frozen=True)
class Entry:
    """One way a parameter w enters the network: y = f(a; w), linear in w, a being the layer's input.

    Attributes:
        name: of the parameter. push: f(a; v) for v of the parameter's shape, of y's shape. pull: its transpose in v,
            of the parameter's shape.
        inputs: what both hold on to, and must not be overwritten.
    """

    name: str
    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]
    inputs: tuple[Tensor, ...] = ()


def linear(name: str, a: Tensor) -> Entry:
    """The matrix (out, in) of y = a W' with a (..., in)."""

    def pull(d: Tensor) -> Tensor:
        return d.reshape(-1, d.shape[-1]).T @ a.reshape(-1, a.shape[-1])

    return Entry(name, lambda v: F.linear(a, v), pull, (a,))


def bias(name: str, shape: torch.Size, axis: int) -> Entry:
    """A vector that is added along ``axis`` of y, whose shape is given."""
    ones = [1] * len(shape)
    ones[axis] = -1
    others = [i for i in range(len(shape)) if i != axis % len(shape)]
    return Entry(name, lambda v: v.view(ones).expand(shape), lambda d: d.sum(dim=others) if others else d)


def scale(name: str, a: Tensor, dims: Sequence[int]) -> Entry:
    """A factor of y = a * w, w of the sizes of a in ``dims`` (affine parameters of the norms)."""
    shape = [size if i in dims else 1 for i, size in enumerate(a.shape)]
    own = [a.shape[i] for i in dims]
    others = [i for i in range(a.ndim) if i not in dims]

    def pull(d: Tensor) -> Tensor:
        return (d * a).sum(dim=others).reshape(own) if others else (d * a).reshape(own)

    return Entry(name, lambda v: a * v.view(shape), pull, (a,))


def shift(name: str, shape: torch.Size, dims: Sequence[int]) -> Entry:
    """A term of y = ... + w, w of the sizes of y in ``dims``."""
    ones = [size if i in dims else 1 for i, size in enumerate(shape)]
    own = [shape[i] for i in dims]
    others = [i for i in range(len(shape)) if i not in dims]
    return Entry(
        name,
        lambda v: v.view(ones).expand(shape),
        lambda d: d.sum(dim=others).reshape(own) if others else d.reshape(own),
    )


def convolution(
    name: str, function: Callable[..., Tensor], a: Tensor, weight: Tensor, options: dict[str, Any]
) -> Entry:
    """The kernel of a convolution; ``options`` are stride, padding, dilation and groups as the function takes them."""
    n = CONVOLUTIONS[function]
    stride, padding, dilation = (_each(options[key], n) for key in ("stride", "padding", "dilation"))
    template = weight.detach()

    def pull(d: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten.convolution_backward(
            d, a, template, None, stride, padding, dilation, False, [0] * n, options["groups"], [False, True, False]
        )[1]
        return made

    return Entry(name, lambda v: function(a, v, None, **options), pull, (a,))


def embedding(name: str, indices: Tensor, rows: int, padding: int | None) -> Entry:
    """The table (rows, d) of an embedding; a padding row is a constant for autograd, and so it is here."""
    known = indices if padding is None else torch.where(indices == padding, -1, indices)
    counted = known >= 0
    safe = known.clamp_min(0)

    def push(v: Tensor) -> Tensor:
        return F.embedding(safe, v) * counted.unsqueeze(-1)

    def pull(d: Tensor) -> Tensor:
        made = torch.zeros((rows, d.shape[-1]), dtype=d.dtype, device=d.device)
        kept = (d * counted.unsqueeze(-1)).reshape(-1, d.shape[-1])
        return made.index_add_(0, safe.reshape(-1), kept)

    return Entry(name, push, pull, (indices,))


def _each(value: Any, n: int) -> list[int]:
    if isinstance(value, int):
        return [value] * n
    made = [int(v) for v in value]
    return made * n if len(made) == 1 else made
