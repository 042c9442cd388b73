"""The rounding of the loss's second derivative S with respect to the output, which a product does not always show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.checks.sample import Sample
from layerhess.curvature.factors.output_hessian import curved
from layerhess.linalg.bounds import FLOAT64_OF_FLOAT32
from layerhess.objective.objective import Objective

Again = Callable[[Tensor], Tensor]
SMALLER = (16.0, 4.0, 1.0)  # the largest number in an output there
LOST_SAFETY = 8.0  # one of the items may be rounded less by luck


@dataclass(frozen=True)
class OutputError:
    """Relative errors, in the model's precision, of the loss's second derivative S with respect to the output.

    Attributes:
        moved: because the output was rounded. evaluated: because S itself is computed from it. lost: even in float64,
            because S is the difference of larger numbers. carrying: how many items carry the curvature, at least 1.
    """

    moved: float = 0.0
    evaluated: float = 0.0
    lost: float = 0.0
    carrying: float = 1.0


def output_error(sample: Sample, copied: Objective, scale: float = 1.0) -> OutputError:
    """Errors of S by rounding on a sample that a product does not show; zero where unknown.

    Where few examples carry the curvature, one of them may by luck be rounded less in the sample than in its batch. So
    the root mean square over all items is taken, however curved they are. In float32 the many items that are nearly
    certain add errors of 1e-8 each to the few that count.

    S is evaluated at outputs that the model gave, between such outputs, and between them and 0, nowhere else: a loss
    may be defined on probabilities or rates only.

    Args:
        sample: with the outputs in the model's own precision. copied: the model in another, on the sample. scale: of
            the model's rounding errors over those of the coarser of the two.
    """
    changes, clutter, curvatures, lost = [], [], [], 0.0
    for ours, batch in zip(sample.seen, copied.data, strict=True):
        with torch.no_grad():
            other = copied.evaluation.surveyed(copied.model, batch, "a sample")
        coarse, fine = (ours, other) if copied.dtype == torch.float64 else (other, ours)
        if coarse.output is None or fine.output is None or coarse.again is None or fine.again is None:
            return OutputError()
        z, again = coarse.output, fine.again
        rounded = fine.output + scale * (z.double() - fine.output)
        rows = [curved(one, again) for one in (rounded, fine.output, z.double())]
        here = curved(z, coarse.again)
        moved, exact, same = rows
        if moved is None or exact is None or same is None or here is None:
            return OutputError()
        sizes = torch.linalg.vector_norm(exact, dim=1)
        off = torch.linalg.vector_norm(moved - exact, dim=1)
        least = 0.0 if scale == 1.0 else FLOAT64_OF_FLOAT32 * float(sizes.max())  # noise of float64 below it
        if bool(((z < 0.0) | (z > 1.0)).any()):  # of probabilities near 1, S has no more digits than 1 - p
            changes.append((off / sizes)[sizes > least])
        curvatures.append(sizes)
        clutter.append(scale * (here - same))
        lost = max(lost, _lost(z, coarse.again, again, float((here - same).norm(dim=1).max()), float(sizes.max())))
    every = torch.cat([*changes, torch.zeros(0, dtype=torch.float64)])
    items, size = sum(len(part) for part in clutter), torch.cat(curvatures)
    sums: dict[int, Tensor] = {}  # by the number of outputs of an item, which may differ from batch to batch
    for part in clutter:
        sums[part.shape[1]] = sums.get(part.shape[1], 0.0) + part.sum(dim=0)
    alike = math.hypot(*(float(total.norm()) for total in sums.values())) / items  # the same in all items
    each = math.hypot(*(float(part.norm()) for part in clutter)) / items  # at random
    moving = float(every.square().mean().sqrt()) if len(every) else 0.0
    carrying = float(size.sum() ** 2 / size.square().sum()) if bool(size.any()) else 1.0
    return OutputError(moving, math.hypot(alike, each) / (sample.curvature or math.inf), lost, max(carrying, 1.0))


def _lost(z: Tensor, coarse: Again, fine: Again, off: float, most: float) -> float:
    """Relative error of S in float64 where float32 has no digits of it, so that it cannot show what float64 loses.

    Such an S is the small difference of larger numbers (1 - p of a class that is nearly certain). Their size is seen
    in the float32 errors of S at smaller outputs, where nothing is certain.

    Args:
        z: (N, ...) float32 outputs. coarse, fine: the loss of others, in float32 and in float64. off: the largest error
            of S in float32. most: the largest S.
    """
    if most == 0.0:
        return 0.0
    flat = z.reshape(len(z), -1)
    largest = flat.abs().amax(dim=1).clamp(min=1.0)
    for size in SMALLER:
        near = (flat * (size / largest).clamp(max=1.0).unsqueeze(1)).view_as(z)
        one, other = curved(near, coarse), curved(near.double(), fine)
        if one is not None and other is not None:
            off = max(off, float((one - other).norm(dim=1).max()))
    return LOST_SAFETY * FLOAT64_OF_FLOAT32 * off / most
