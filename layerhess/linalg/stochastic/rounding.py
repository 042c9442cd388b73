"""What rounding of the products leaves of a trace or a diagonal; no number of random vectors takes it away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerhess.linalg.bounds import unit_rounding

MANY = 3.0  # products were made, and the rounding of the worst need not show in the one or two that were measured
RELATIVE = MANY * unit_rounding(float(torch.finfo(torch.float64).eps), 1.0)  # of products in float64


def coarser(relative: float) -> float:
    """By how much products with this relative error are rounded more than :data:`RELATIVE`."""
    return max(MANY * relative / RELATIVE, 1.0)


def entry_scales(diagonal: Tensor, lengths: Tensor | None) -> Tensor:
    """(n,) magnitudes by which the rounding of diagonal entries is measured.

    A product's error is relative to its length, not to the one entry of it that is read: that may be zero by
    cancellation. It is spread over n entries.

    Args:
        diagonal: (n,). lengths: (n,) of the columns; None where they are not known.
    """
    if lengths is None or not len(diagonal):
        return diagonal.abs()
    return torch.maximum(diagonal.abs(), lengths / math.sqrt(len(diagonal)))
