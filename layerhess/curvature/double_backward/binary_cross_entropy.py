"""Binary cross entropy with its own derivatives: of probabilities torch's second one is wrong near 0 and 1.

torch adds 1e-12 to p and 1 - p in its double backward, squared in the denominator: a relative error of 2e-12 over
p (1 - p), 0.2 % at p = 1e-9, and more of what is left where a sigmoid before it cancels most of it. Its gradient clamps
p (1 - p) at 1e-12. Here both are those of -(y log p + (1 - y) log (1 - p)), with the logarithms clamped at -100 as in
torch's forward pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

from layerhess.curvature.double_backward.activations import logsigmoid

LEAST = -100.0  # torch's least logarithm
FLOOR = math.exp(LEAST)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.binary_cross_entropy``, by operations that may be differentiated any number of times."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    value = F.binary_cross_entropy(input.detach(), target.detach(), weight, reduction=reduction)  # refuses bad input
    if not torch.is_grad_enabled():
        return value
    inside, outside = input > FLOOR, input < 1.0
    log_p = torch.where(inside, torch.where(inside, input, 1.0).log(), LEAST)
    log_q = torch.where(outside, torch.log1p(-torch.where(outside, input, 0.0)), LEAST)
    losses = -(target * log_p + (1.0 - target) * log_q)
    if weight is not None:
        losses = losses * weight
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.binary_cross_entropy_with_logits``, without its differences of nearly equal numbers."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if reduction not in ("none", "sum", "mean") or target.shape != input.shape:  # torch says what is wrong
        return F.binary_cross_entropy_with_logits(input, target, weight, None, None, reduction, pos_weight)
    yes = target * logsigmoid(input)
    losses = -((yes if pos_weight is None else pos_weight * yes) + (1.0 - target) * logsigmoid(-input))
    if weight is not None:
        losses = losses * weight
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()
