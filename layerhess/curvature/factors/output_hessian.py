"""Square roots of a loss's second derivative in the output, item by item, if the loss is a sum over items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.curvature.double_backward.mode import Rewritten

MOST_DIRECTIONS = 32  # per item of the output: with more, the backward passes cost more than exact products
NEGLIGIBLE = 16.0  # eps: an eigenvalue of the scaled S of an item below this share of its largest is rounding
MOST_CURVED = 1 << 20  # numbers in the output of a batch whose items are compared
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, spread as evenly as any sequence does
# Relative difference at which two sums of the same numbers in another order are still the same.
LARGEST_POWER = 10  # of two, and smallest, that items are scaled with to tell them apart
SAME_SUM = {torch.float64: 1e-11, torch.float32: 2e-5}


@dataclass(frozen=True)
class Directions:
    """S_n = d2 loss / d z_n2 = M_n diag(signs_n) M_n' for each item n, and d loss / dz.

    Attributes:
        roots: M, (N, K, Q). signs: (N, Q). slope: of the output's shape.
    """

    roots: Tensor
    signs: Tensor
    slope: Tensor


def output_directions(
    loss: Tensor, output: Tensor, again: Callable[[Tensor], Tensor] | None = None
) -> Directions | None:
    """The directions of each item; None where there are too many, or where the loss is not a sum over items.

    S is taken per item from K products with unit vectors, the same entry of all items at once. That is right only if
    the loss is a sum over items. So when a vector is scaled item by item, its product must scale in the same way.
    Before the eigendecomposition S is scaled to a unit diagonal, so that no output is dropped because it is small
    compared with another.

    Args:
        loss: 0-d. output: z, (N, ...) with K numbers an item, an inner node of the loss's graph.
        again: the same loss of another z. With it S of a float32 output is computed in float64: in float32, 1 - p has
            no digits for a class that is nearly certain, and S would seem to have one direction too many. And it is
            differentiated in the forms of :class:`layerhess.curvature.double_backward.mode.Rewritten`, as in products.
    """
    n = len(output)
    size = output.numel() // n
    if size > MOST_DIRECTIONS or not loss.requires_grad or output.dtype not in SAME_SUM:
        return None
    if again is not None:
        z = output.detach().double().requires_grad_()
        try:
            return _of_items(_loss(again, z), z, output.dtype)
        except Exception:  # class weights or targets in float32 may not fit; user code can raise anything
            pass
    return _of_items(loss, output, output.dtype)


def _loss(again: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with Rewritten():
        return again(z)


def _of_items(loss: Tensor, z: Tensor, dtype: torch.dtype) -> Directions | None:
    n, size = len(z), z.numel() // len(z)
    found: Tensor | None = torch.autograd.grad(loss, [z], create_graph=True, allow_unused=True)[0]
    if found is None:
        return None
    slope = found
    columns = z.new_zeros((n, size, size))
    if slope.requires_grad:
        for j in range(size):
            unit = z.new_zeros((n, size))
            unit[:, j] = 1.0
            columns[:, :, j] = _applied(slope, z, unit)
        probe = item_probe(n, size, z)
        alone, weighed = (_applied(slope, z, probe * w) for w in (1.0, item_weights(n, z).unsqueeze(1)))
        if not same_by_item(weighed, alone):
            return None
    if not bool(torch.isfinite(columns).all()):
        return None
    exact = ((columns + columns.mT) / 2).double()
    lengths = exact.diagonal(dim1=1, dim2=2).abs()
    lengths = torch.where(lengths > 0.0, lengths, exact.abs().amax(dim=2)).sqrt()
    inverse = torch.where(lengths > 0.0, 1.0 / lengths, 0.0)
    values, vectors = torch.linalg.eigh(exact * inverse.unsqueeze(1) * inverse.unsqueeze(2))
    order = values.abs().argsort(dim=1, descending=True)
    values = values.gather(1, order)
    vectors = vectors.gather(2, order.unsqueeze(1).expand_as(vectors))
    floor = NEGLIGIBLE * torch.finfo(dtype).eps * values.abs().amax(dim=1, keepdim=True)
    rank = max(1, int((values.abs() > floor).any(dim=0).sum()))
    values, vectors = values[:, :rank], vectors[:, :, :rank]
    roots = lengths.unsqueeze(2) * vectors * values.abs().sqrt().unsqueeze(1)
    return Directions(roots.to(dtype), values.sign().to(dtype), slope.detach().to(dtype))


def item_curvature(output: object, again: Callable[[Tensor], Tensor]) -> Tensor | None:
    """(N,) float64: ||S_n r|| of every item of the output, with the same r for all; None where unknown.

    In float64 if the loss can: in float32, 1 - p has no digits for an item whose class is nearly certain.

    Args:
        output: z, (N, ...). again: the loss sum of another z.
    """
    if not isinstance(output, Tensor) or output.dtype not in SAME_SUM:
        return None
    rows = curved(output.double(), again)
    rows = curved(output, again) if rows is None else rows
    return None if rows is None else torch.linalg.vector_norm(rows, dim=1)


def curved(z: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor | None:
    """S_n r for the same r, (N, K) float64, computed in the dtype of z; None where that fails.

    Cost: about ten operations on the output, none on the network.
    """
    if not z.ndim or not 0 < z.numel() <= MOST_CURVED:
        return None
    try:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(_loss(again, z), [z], create_graph=True)
            if not slope.requires_grad:
                return None
            rows = _applied(slope, z, _apart(z[0].numel(), z).expand(len(z), -1)).double().cpu()
    except Exception:  # whatever a user's loss raises in another dtype, or where it cannot be differentiated twice
        return None
    return rows if bool(torch.isfinite(rows).all()) else None


def along(z: Tensor, change: Tensor, bend: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor | None:
    """(N,) float64: |x_n' S_n x_n| + |<d loss / dz_n, y_n>| of every item of an output; None where that fails.

    Args:
        z: (N, ...). change: x, bend: y, of its shape. again: the loss sum of another z.
    """
    try:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(_loss(again, z), [z], create_graph=True)
            rows = change.reshape(len(z), -1)
            bent = _applied(slope, z, rows) if slope.requires_grad else torch.zeros_like(rows)
    except Exception:  # whatever a user's loss raises where it cannot be differentiated twice
        return None
    first, second = (bent * rows).double().sum(dim=1), (slope.detach() * bend).double().reshape(len(z), -1).sum(dim=1)
    return (first.abs() + second.abs()).cpu()


def _apart(size: int, like: Tensor) -> Tensor:
    """(K,) numbers in [-1, 1), no two close: S r of two equally likely classes is proportional to their difference."""
    return (2.0 * torch.frac(torch.arange(size, dtype=torch.float64) * GOLDEN) - 1.0).to(like)


def item_probe(n: int, size: int, like: Tensor) -> Tensor:
    """(N, K) generic numbers, always the same."""
    return torch.randn((n, size), generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(like)


def item_weights(n: int, like: Tensor) -> Tensor:
    """(N,) powers of two in a random order, as different from item to item as their number allows.

    What is linear in a seed and does not mix items scales with them exactly: a power of two adds no rounding.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n + 1))
    return torch.exp2((order % (2 * LARGEST_POWER + 1) - LARGEST_POWER).double()).to(like)


def same_by_item(weighed: Tensor, alone: Tensor) -> bool:
    """Whether the (N, D) rows ``weighed`` are those of ``alone`` times :func:`item_weights`."""
    expected = alone * item_weights(len(alone), alone).unsqueeze(1)
    off, size = (torch.linalg.vector_norm(rows, dim=1) for rows in (weighed - expected, expected))
    return bool((off <= SAME_SUM[alone.dtype] * size + torch.finfo(alone.dtype).tiny).all())


def _applied(slope: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """S x for x given as (N, K)."""
    (made,) = torch.autograd.grad(slope, [output], rows.view_as(output), retain_graph=True, allow_unused=True)
    return torch.zeros_like(rows) if made is None else made.reshape(rows.shape)
