"""What a loss does with an output, item by item: square roots of its second derivative, and whether items are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_DIRECTIONS = 32  # per item of the output: beyond, as many backward passes cost more than exact products
NEGLIGIBLE = 16.0  # eps: an eigenvalue of the scaled S of an item below this share of its largest is rounding
# Relative difference at which two sums of the same numbers in another order are still the same.
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


def output_directions(loss: Tensor, output: Tensor) -> Directions | None:
    """The directions of each item; None where there are too many, or the loss ties items together.

    S is taken per item from K products with unit vectors, the same entry of all items at once. That is right only if
    the loss is a sum over items: so one product with a vector that differs from item to item must be what these S_n
    make of it. Before the eigendecomposition S is scaled to a unit diagonal, so that no output is too small beside
    another to be kept.

    Args:
        loss: 0-d. output: z, (N, ...) with K numbers an item, an inner node of the loss's graph.
    """
    n = len(output)
    size = output.numel() // n
    if size > MOST_DIRECTIONS or not loss.requires_grad or output.dtype not in SAME_SUM:
        return None
    found: Tensor | None = torch.autograd.grad(loss, [output], create_graph=True, allow_unused=True)[0]
    if found is None:
        return None
    slope = found
    columns = output.new_zeros((n, size, size))
    if slope.requires_grad:
        for j in range(size):
            unit = output.new_zeros((n, size))
            unit[:, j] = 1.0
            columns[:, :, j] = _applied(slope, output, unit)
        mixed = torch.rand((n, size), generator=torch.Generator().manual_seed(n)).to(output) + 0.5
        expected = torch.einsum("nij,nj->ni", columns, mixed)
        scale = torch.einsum("nij,nj->ni", columns.abs(), mixed)
        if not same_by_item(_applied(slope, output, mixed), expected, torch.linalg.vector_norm(scale, dim=1)):
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
    floor = NEGLIGIBLE * torch.finfo(output.dtype).eps * values.abs().amax(dim=1, keepdim=True)
    rank = max(1, int((values.abs() > floor).any(dim=0).sum()))
    values, vectors = values[:, :rank], vectors[:, :, :rank]
    roots = lengths.unsqueeze(2) * vectors * values.abs().sqrt().unsqueeze(1)
    return Directions(roots.to(output.dtype), values.sign().to(output.dtype), slope.detach())


def item_weights(n: int, like: Tensor) -> Tensor:
    """(N,) numbers between 1/2 and 3/2, no two alike, in a random order that is always the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return (0.5 + order.double() / max(n, 1)).to(like)


def same_by_item(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    """Whether (N, D) rows agree, each to the rounding of a sum of the size ``scale`` (N,)."""
    off = torch.linalg.vector_norm(found - expected, dim=1)
    return bool((off <= SAME_SUM[found.dtype] * scale + torch.finfo(found.dtype).tiny).all())


def _applied(slope: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """S x for x given as (N, K)."""
    (made,) = torch.autograd.grad(slope, [output], rows.view_as(output), retain_graph=True, allow_unused=True)
    return torch.zeros_like(rows) if made is None else made.reshape(rows.shape)
