"""The error that rounding of the products causes in a trace or diagonal; more random vectors do not reduce it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerhess.linalg.bounds import unit_rounding

MANY = 3.0  # a safety factor: of many products the worst need not be among the one or two that were measured
RELATIVE = MANY * unit_rounding(float(torch.finfo(torch.float64).eps), 1.0)  # of products in float64


def coarser(relative: float) -> float:
    """How much larger this relative error is than :data:`RELATIVE`."""
    return max(MANY * relative / RELATIVE, 1.0)


def entry_scales(diagonal: Tensor, lengths: Tensor | None) -> Tensor:
    """(n,) magnitudes that the rounding of diagonal entries is relative to.

    A product's error is relative to its length, not to the one entry that is read, which may be zero by cancellation.
    The error is spread over n entries.

    Args:
        diagonal: (n,). lengths: (n,) of the columns; None where they are not known.
    """
    if lengths is None or not len(diagonal):
        return diagonal.abs()
    return torch.maximum(diagonal.abs(), lengths / math.sqrt(len(diagonal)))
