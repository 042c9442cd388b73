"""Cross entropy in closed form to its second derivative, in pieces that stay in the cache, with all its digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.log_softmax import log_softmax
from layerhess.curvature.double_backward.softmax import balanced, centred
from layerhess.curvature.double_backward.transforms import is_batched

PIECE = 1 << 17  # numbers of the logits at a time
SURE = math.log(0.5)  # of a log probability: above it the class is likelier than all others together


@dataclass(frozen=True)
class _Items:
    """What N items have to do with C classes: their losses are -sum_c q_c log softmax(x)_c with q = own e_t + even r.

    Attributes:
        target: (N, 1) the class t. own: (N, 1) its share. even: (N, 1) that of all classes, None without smoothing.
        rated: (C,) r, the classes' weights; None for ones. total: (N, 1) sum of q.
        top: (N, 1) where the largest logit is. sure: (N, 1) bool, its probability is above 1/2: differences such as 1 -
            p lose digits there.
    """

    target: Tensor
    own: Tensor
    even: Tensor | None
    rated: Tensor | None
    total: Tensor
    top: Tensor
    sure: Tensor

    def pieces(self, *whole: Tensor) -> Iterator[tuple[_Items, tuple[Tensor, ...]]]:
        """A few items at a time, with their rows of tensors (N, C) or (N, 1)."""
        classes = max(x.shape[1] for x in whole)
        for i in range(0, max(1, len(whole[0])), size := max(1, PIECE // classes)):
            rows = slice(i, i + size)
            even = None if self.even is None else self.even[rows]
            total, top, sure = (x[rows] for x in (self.total, self.top, self.sure))
            few = _Items(self.target[rows], self.own[rows], even, self.rated, total, top, sure)
            yield few, tuple(x[rows] for x in whole)

    def expected(self, h: Tensor) -> Tensor:
        """(N, 1) q'h of (N, C)."""
        made = self.own * h.gather(1, self.target)
        if self.even is None:
            return made
        return made + self.even * (h if self.rated is None else h * self.rated).sum(1, keepdim=True)


class _CrossEntropy(torch.autograd.Function):
    """(N, 1) losses of logits x, (N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, items: _Items, losses: Tensor) -> Tensor:
        ctx.items = items
        ctx.save_for_backward(x)
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,), items, g = ctx.saved_tensors, ctx.items, gradients[0]
        if is_batched(g):
            return _slope(g, x, items), None, None
        return _Slope.apply(g, x, items), None, None  # type: ignore[no-untyped-call]


class _Slope(torch.autograd.Function):
    """g (Q y - q) of y = softmax(x), Q = sum of q. Along h: -q'(h - y'h) in g, g Q y (h - y'h) in x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, items: _Items) -> Tensor:
        ctx.items = items
        ctx.save_for_backward(g, x)
        made = torch.empty_like(x)
        for few, (own_g, own_x, out) in items.pieces(g, x, made):
            torch.mul(torch.softmax(own_x, 1), own_g * few.total, out=out)
            if few.even is not None:
                out -= own_g * few.even if few.rated is None else own_g * few.even * few.rated
            out.scatter_add_(1, few.target, -own_g * few.own)
            # As a difference the entry of a sure class has no digits; the others have, and all together are zero.
            largest = out.gather(1, few.top)
            rest = out.scatter_(1, few.top, 0.0).sum(1, keepdim=True)
            out.scatter_(1, few.top, torch.where(few.sure, -rest, largest))
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g, x), items, h = ctx.saved_tensors, ctx.items, gradients[0]
        if torch.is_grad_enabled() or is_batched(h):
            y = torch.softmax(x, 1)
            apart = centred(h, y, 1, (items.top, items.sure))
            return -items.expected(apart), g * items.total * y * apart, None
        along, bent = torch.empty_like(g), torch.empty_like(x)
        for few, (own_g, own_x, own_h, out, change) in items.pieces(g, x, h, bent, along):
            y = torch.softmax(own_x, 1)
            # Differences from the sure class: then its own share of the mean is no difference of large numbers.
            apart = own_h - torch.where(few.sure, own_h.gather(1, few.top), 0.0)
            apart -= torch.mul(y, apart, out=out).sum(1, keepdim=True)
            if ctx.needs_input_grad[0]:
                torch.neg(few.expected(apart), out=change)
            torch.mul(y.mul_(own_g * few.total), apart, out=out)
        return along, bent, None


def _slope(g: Tensor, x: Tensor, items: _Items) -> Tensor:
    """The same in operations that autograd follows."""
    even = None if items.even is None else items.even * (1.0 if items.rated is None else items.rated)
    made = torch.softmax(x, 1) * (g * items.total)
    made = made if even is None else made - g * even
    return balanced(made.scatter_add(1, items.target, -g * items.own), 1, (items.top, items.sure))


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.cross_entropy``; other input and old arguments are left to torch."""
    likely = target.is_floating_point()
    odd = size_average is not None or reduce is not None or reduction not in ("none", "sum", "mean") or not input.dim()
    odd |= weight is not None and weight.requires_grad
    if odd or not 0.0 <= label_smoothing <= 1.0 or (likely and target.shape != input.shape):
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    if likely:
        return _of_distributions(input, target, weight, reduction, label_smoothing)
    losses, shares = _of_classes(input, target, weight, ignore_index, label_smoothing)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    # Of no item at all the mean is NaN, and its derivative 0, as torch has it: a loss may leave such a batch out.
    counted = shares.sum()
    nothing = counted == 0.0
    mean = losses.sum() / torch.where(nothing, 1.0, counted)
    return torch.where(nothing, math.nan, 0.0).to(mean) + mean


def _of_classes(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Every item's loss, with torch's digits, and what it counts in a mean."""
    with torch.no_grad():
        F.nll_loss(input, target, weight, None, ignore_index, None, "none")  # says what is wrong
    single = input.dim() == 1
    given, classes = (input.unsqueeze(0), target.reshape(1)) if single else (input, target)
    x = given.movedim(1, -1).flatten(0, -2)
    flat = target.reshape(-1, 1)
    known = flat != ignore_index
    flat = flat.long().masked_fill(~known, 0)
    share = known.to(x.dtype) if weight is None else weight[flat] * known
    even, total = None, share
    if smoothing > 0.0:
        even = known.to(x.dtype) * (smoothing / x.shape[1])
        total = share * (1.0 - smoothing) + even * (x.shape[1] if weight is None else weight.sum())
    # Made before the pieces: small tensors between large ones that are let go keep their memory from being used again.
    losses, sure, top = (x.new_empty((len(x), 1), dtype=dtype) for dtype in (x.dtype, torch.bool, torch.long))
    positions = len(x) // max(1, len(given))
    with torch.no_grad():
        size = max(1, PIECE // max(1, given[:1].numel()))
        for i, (part, chosen) in enumerate(zip(torch.split(given, size), torch.split(classes, size), strict=True)):
            own = slice(i * size * positions, (i + 1) * size * positions)
            # Along the dimension it has: another order of summation has other digits, of a loss near 0 visibly.
            z = torch.log_softmax(part, 1)
            loss = F.nll_loss(z, chosen, weight, None, ignore_index, None, "none")
            rows = z.movedim(1, -1).flatten(0, -2)
            if smoothing > 0.0:
                mean = (rows if weight is None else rows * weight).sum(1).reshape(loss.shape)
                mean = mean.masked_fill(chosen == ignore_index, 0.0)
                loss = (1.0 - smoothing) * loss - smoothing / x.shape[1] * mean
            losses[own] = loss.reshape(-1, 1)
            most, top[own] = rows.max(1, keepdim=True)
            sure[own] = most > SURE
    items = _Items(flat, share * (1.0 - smoothing), even, weight, total, top, sure)
    made: Tensor = _CrossEntropy.apply(x, items, losses)  # type: ignore[no-untyped-call]
    return made.reshape(target.shape), share.reshape(target.shape)


def _of_distributions(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float) -> Tensor:
    """Of targets that are probabilities themselves, and may have a graph."""
    dim = min(input.dim() - 1, 1)
    classes = input.shape[dim]
    z = log_softmax(input, dim)
    by_class = None if weight is None else weight.view([-1 if d == dim else 1 for d in range(z.dim())])
    target = target * (1.0 - smoothing) + smoothing / classes if smoothing > 0.0 else target
    losses = -(z * target if by_class is None else z * target * by_class).sum(dim)
    if reduction == "mean":
        return losses.sum() / (input.numel() / classes)
    return losses.sum() if reduction == "sum" else losses
