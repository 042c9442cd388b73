"""Whether a weight has been rounded to few values before: rounded again it would lose more, unnoticed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerhess.planning.weights.quantization import block_of, in_rows
from layerhess.results.options import Quantize

ROWS, OF_A_ROW = 64, 4096  # blocks that are looked at, and weights of each
SURE = 100.0  # decimal digits of improbability from which a weight counts as rounded
LARGEST = sorted({2 ** (b - 1) - i for b in range(2, 9) for i in (0, 1)})  # |q| at the end of a symmetric grid
STEPS = sorted({2**b - i for b in range(2, 9) for i in (1, 2)})  # of a whole asymmetric one


def rounded_before(option: Quantize, weight: Tensor) -> bool:
    """Whether the blocks of a weight lie on grids of at most 8 bits already.

    A block is on a grid of k steps if w / s is an integer for all of its weights, s being its largest magnitude (or its
    range) over k. Weights that are zero or at the end prove nothing, unless many are at -k, 0 and k each. Any other one
    is as near to an integer by chance with probability 2 tol, tol being k times the dtype's roundoff. Where that is no
    small number (8 bits in bfloat16), nothing can be told, and the answer is no.

    >>> import torch
    >>> from layerhess.results.options import Quantize
    >>> weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    >>> from layerhess.planning.weights.applied import changed
    >>> rounded_before(Quantize(4), weight), rounded_before(Quantize(4), changed(Quantize(4), weight))
    (False, True)
    """
    rows = in_rows(weight.detach(), block_of(option, weight.shape))
    rows = rows[:: math.ceil(len(rows) / ROWS)]
    high = rows.amax(1, keepdim=True).clamp(min=0.0).double()
    low = rows.amin(1, keepdim=True).clamp(max=0.0).double()
    ends, spans = torch.maximum(high, -low), high - low
    rows = rows[:, :: math.ceil(rows.shape[1] / OF_A_ROW)].double()
    roundoff = torch.finfo(weight.dtype).eps
    best = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)
    for size, counts in ((ends, LARGEST), (spans, STEPS)):
        for k in counts:
            best = torch.maximum(best, _digits(rows, size / k, ends, 1.1 * roundoff * k, k == 1))
    return bool(best.sum() > SURE)  # minus infinity as soon as one block is on no grid


def _digits(rows: Tensor, step: Tensor, ends: Tensor, tol: float, ternary: bool) -> Tensor:
    """How improbable it is that each row is on the grid by chance, in decimal digits; minus infinity if it is not."""
    if 2.0 * tol > 0.25:
        return torch.where(ends.squeeze(1) > 0.0, -math.inf, 0.0).double()
    multiples = torch.where(step > 0.0, rows / step, 0.0)
    on_it = ((multiples - multiples.round()).abs() <= tol).all(1)
    telling = ((rows != 0.0) & (rows.abs() < ends)).sum(1)
    if ternary:
        telling = torch.stack([(rows == value).sum(1) for value in (-ends, ends, torch.zeros_like(ends))]).amin(0)
    return torch.where(on_it, -math.log10(2.0 * tol) * telling * (ends.squeeze(1) > 0.0), -math.inf)
