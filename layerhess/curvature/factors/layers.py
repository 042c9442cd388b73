"""Layers that are linear in their parameters: the map from a parameter's change to the output's, and its transpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.geometry import Geometry


@dataclass(frozen=True)
class Entry:
    """One way a parameter w enters the network: y = f(a; w), linear in w, a being the layer's input.

    Attributes:
        name: of the parameter. push: f(a; v) for v of the parameter's shape, of y's shape. pull: its transpose in v,
            of the parameter's shape.
        inputs: tensors that both use, and that must not be overwritten.
        push_rows, pull_rows: the same for s vectors at once, (s, *w.shape) to (M, s, *y.shape[1:]) and back, where that
            is faster than one by one; M = len(y).
        each: (M, *y.shape[1:]) to (M, *w.shape), the pull of each row of y separately; None where there is none.
        laid_out: makes a version of the same that is faster over many calls: the inputs are laid out once, which takes
            memory.
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
    """A factor w in y = a * w, with the sizes of a in ``dims``, never the first (affine parameters of norm layers)."""
    added = shift(name, a.shape, dims)
    shape = [size if i in dims else 1 for i, size in enumerate(a.shape)]
    each = added.each
    assert each is not None
    return Entry(name, lambda v: a * v.view(shape), lambda d: added.pull(d * a), (a,), each=lambda d: each(d * a))


def shift(name: str, shape: torch.Size, dims: Sequence[int]) -> Entry:
    """A term w in y = ... + w, with the sizes of y in ``dims``, never the first."""
    ones = [size if i in dims else 1 for i, size in enumerate(shape)]
    own = [shape[i] for i in dims]
    others = [i for i in range(1, len(shape)) if i not in dims]

    def each(d: Tensor) -> Tensor:
        return (d.sum(dim=others) if others else d).reshape(len(d), *own)

    return Entry(name, lambda v: v.view(ones).expand(shape), lambda d: each(d).sum(dim=0), each=each)


def convolution(name: str, a: Tensor, shape: torch.Size, geometry: Geometry) -> Entry:
    """The kernel of a convolution, of the given shape."""

    def gradients(d: Tensor, count: int) -> Tensor:
        many = torch.Size((count * shape[0], *shape[1:]))
        return geometry.weight_gradient(d, a, many).view(count, *shape)

    def push_rows(rows: Tensor) -> Tensor:
        y = geometry.output(a, rows.flatten(0, 1))
        return y.reshape(len(y), len(rows), -1, *y.shape[2:])

    def each(d: Tensor) -> Tensor:
        # Every example is a group of its own, so that the kernel gradients of different examples do not mix.
        m = len(a)
        apart, many = replace(geometry, groups=m * geometry.groups), torch.Size((m * shape[0], *shape[1:]))
        d, inputs = (t.reshape(1, -1, *t.shape[2:]) for t in (d, a))
        return apart.weight_gradient(d, inputs, many).view(m, *shape)

    def patches() -> Callable[[Tensor], Tensor]:
        laid = F.unfold(a, shape[2:], geometry.dilation, geometry.padding, geometry.stride).mT
        return lambda d: torch.bmm(d.flatten(2), laid).view(len(a), *shape)

    single = Entry(name, lambda v: geometry.output(a, v), lambda d: gradients(d, 1)[0], (a,), each=each)
    if geometry.groups != 1:  # output channels of several kernels would have to be interleaved
        return single
    if a.ndim == 4:
        single = replace(single, each=lambda d: patches()(d), laid_out=patches)
    return replace(single, push_rows=push_rows, pull_rows=lambda rows: gradients(rows.flatten(1, 2), rows.shape[1]))


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
