"""The smallest weights of a tensor set to zero, anywhere or two of every four neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from layerhess.results.options import Prune

FOUR, OF_FOUR = 4, 2  # "2:4": of so many neighbours, so many are set to zero


def why_not(option: Prune, shape: Sequence[int]) -> str:
    """Why a weight of this shape cannot be pruned so; "" if it can."""
    if not math.prod(shape):
        return "it has no weights"
    if option.sparsity != "2:4":
        return ""
    if len(shape) < 2:
        return f"2:4 sparsity needs two dimensions, and it has {len(shape)}"
    if shape[1] % FOUR:
        return f"its {shape[1]} weights along dimension 1 are no multiple of {FOUR}"
    return ""


def pruned(option: Prune, weight: Tensor) -> Tensor:
    """The weight with round(sparsity n) of its n numbers at zero: those of least magnitude, the first of equals.

    Numbers that are zero already count, and more of them stay. Of "2:4", two of every four neighbours along dimension 1
    are zero, the pattern of NVIDIA's sparse tensor cores (Mishra et al., 2021).

    >>> import torch
    >>> from layerhess.results.options import Prune
    >>> pruned(Prune(0.5), torch.tensor([[3.0, -1.0], [1.0, -2.0]]))
    tensor([[ 3.,  0.],
            [ 0., -2.]])
    """
    if option.sparsity == "2:4":
        rows = weight.movedim(1, -1)
        fours = rows.reshape(-1, FOUR)
        smallest = fours.abs().argsort(dim=1, stable=True)[:, :OF_FOUR]
        return fours.scatter(1, smallest, 0.0).reshape(rows.shape).movedim(-1, 1).contiguous()
    flat = weight.flatten()
    count = round(option.share * flat.numel())
    smallest = flat.abs().argsort(stable=True)[:count]
    return flat.index_fill(0, smallest, 0.0).reshape(weight.shape)
