"""Layers that are linear in their parameters: how a change of one moves the output, and the transpose of that."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        push_rows, pull_rows: the same for s vectors at once, (s, *w.shape) to (M, s, *y.shape[1:]) and back, where that
            is faster than one by one; M = len(y).
        each: (M, *y.shape[1:]) to (M, *w.shape), the pull of every row of y by itself; None where nobody wrote it.
        laid_out: makes the same, faster for many calls, out of the inputs laid out once, which takes memory.
    """

    name: str
    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]
    inputs: tuple[Tensor, ...] = ()
    push_rows: Callable[[Tensor], Tensor] | None = None
    pull_rows: Callable[[Tensor], Tensor] | None = None
    each: Callable[[Tensor], Tensor] | None = None
    laid_out: Callable[[], Callable[[Tensor], Tensor]] | None = None

    def pushed(self, rows: Tensor) -> Tensor:
        """(s, *w.shape) vectors to (M, s, *y.shape[1:])."""
        if self.push_rows is not None:
            return self.push_rows(rows)
        return torch.stack([self.push(row) for row in rows], dim=1)

    def pulled(self, rows: Tensor) -> Tensor:
        """(M, s, *y.shape[1:]) to (s, *w.shape)."""
        if self.pull_rows is not None:
            return self.pull_rows(rows)
        return torch.stack([self.pull(rows[:, i]) for i in range(rows.shape[1])])


def linear(name: str, a: Tensor) -> Entry:
    """The matrix (out, in) of y = a W' with a (..., in)."""

    def pull(d: Tensor) -> Tensor:
        return d.reshape(-1, d.shape[-1]).T @ a.reshape(-1, a.shape[-1])

    def push_rows(rows: Tensor) -> Tensor:
        s, out, size = rows.shape
        y = F.linear(a, rows.reshape(s * out, size))
        return y.view(*y.shape[:-1], s, out).movedim(-2, 1)

    def pull_rows(rows: Tensor) -> Tensor:
        flat = a.reshape(-1, a.shape[-1])
        return torch.stack([rows[:, i].reshape(-1, rows.shape[-1]).T @ flat for i in range(rows.shape[1])])

    def each(d: Tensor) -> Tensor:
        return torch.bmm(d.reshape(len(d), -1, d.shape[-1]).mT, a.reshape(len(a), -1, a.shape[-1]))

    return Entry(name, lambda v: F.linear(a, v), pull, (a,), push_rows, pull_rows, each)


def bias(name: str, shape: torch.Size, axis: int) -> Entry:
    """A vector that is added along ``axis`` of y, whose shape is given."""
    return shift(name, shape, [axis % len(shape)])


def scale(name: str, a: Tensor, dims: Sequence[int]) -> Entry:
    """A factor of y = a * w, w of the sizes of a in ``dims`` (affine parameters of the norms), not the first."""
    added = shift(name, a.shape, dims)
    shape = [size if i in dims else 1 for i, size in enumerate(a.shape)]
    each = added.each
    assert each is not None
    return Entry(name, lambda v: a * v.view(shape), lambda d: added.pull(d * a), (a,), each=lambda d: each(d * a))


def shift(name: str, shape: torch.Size, dims: Sequence[int]) -> Entry:
    """A term of y = ... + w, w of the sizes of y in ``dims``, not the first."""
    ones = [size if i in dims else 1 for i, size in enumerate(shape)]
    own = [shape[i] for i in dims]
    others = [i for i in range(1, len(shape)) if i not in dims]

    def each(d: Tensor) -> Tensor:
        return (d.sum(dim=others) if others else d).reshape(len(d), *own)

    return Entry(name, lambda v: v.view(ones).expand(shape), lambda d: each(d).sum(dim=0), each=each)


def convolution(
    name: str, function: Callable[..., Tensor], a: Tensor, weight: Tensor, options: dict[str, Any]
) -> Entry:
    """The kernel of a convolution; ``options`` are stride, padding, dilation and groups as the function takes them."""
    n = CONVOLUTIONS[function]
    stride, padding, dilation = (per_dimension(options[key], n) for key in ("stride", "padding", "dilation"))
    template, groups = weight.detach(), options["groups"]

    def gradient(d: Tensor, kernel: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten.convolution_backward(
            d, a, kernel, None, stride, padding, dilation, False, [0] * n, groups, [False, True, False]
        )[1]
        return made

    def push_rows(rows: Tensor) -> Tensor:
        y = function(a, rows.flatten(0, 1), None, **options)
        return y.reshape(len(y), len(rows), -1, *y.shape[2:])

    def pull_rows(rows: Tensor) -> Tensor:
        s = rows.shape[1]
        many = template.unsqueeze(0).expand(s, *template.shape).reshape(-1, *template.shape[1:])
        return gradient(rows.flatten(1, 2), many).view(s, *template.shape)

    def each(d: Tensor) -> Tensor:
        # Every example as a group of its own: their kernels' gradients do not mix.
        m = len(a)
        apart = template.unsqueeze(0).expand(m, *template.shape).reshape(-1, *template.shape[1:])
        made = torch.ops.aten.convolution_backward(
            d.reshape(1, -1, *d.shape[2:]), a.reshape(1, -1, *a.shape[2:]), apart, None, stride, padding, dilation,
            False, [0] * n, m * groups, [False, True, False],
        )[1]  # fmt: skip
        found: Tensor = made.view(m, *template.shape)
        return found

    def patches() -> Callable[[Tensor], Tensor]:
        laid = F.unfold(a, tuple(template.shape[2:]), tuple(dilation), tuple(padding), tuple(stride)).mT
        return lambda d: torch.bmm(d.flatten(2), laid).view(len(a), *template.shape)

    single = Entry(name, lambda v: function(a, v, None, **options), lambda d: gradient(d, template), (a,), each=each)
    if n == 2 and groups == 1:
        single = replace(single, each=lambda d: patches()(d), laid_out=patches)
    # With groups, output channels of several kernels would have to be interleaved.
    return single if groups != 1 else replace(single, push_rows=push_rows, pull_rows=pull_rows)


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


def per_dimension(value: Any, n: int) -> list[int]:
    """A stride, padding or dilation for each of n dimensions; anything that is an integer stands for all of them."""
    try:
        return [operator.index(value)] * n
    except TypeError:
        made = [int(v) for v in value]
        return made * n if len(made) == 1 else made
