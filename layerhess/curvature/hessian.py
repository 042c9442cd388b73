"""The Hessian of the mean loss."""

from __future__ import annotations

from layerhess.curvature.matrices import HESSIAN
from layerhess.curvature.operator import Operator


class Hessian(Operator):
    """H = d2 L / d theta2 and its diagonal blocks H_bb, as linear operators.

    Products are exact up to rounding (Pearlmutter 1994, by reverse over reverse), each one pass over the data. The
    self-check belongs to :func:`layerhess.analyze`; run that for numbers to be relied on.

    Args:
        objective: the loss over the data.
        blocks: a block scheme, see :func:`layerhess.analyze`.

    Attributes:
        shape: (P, P). block_names: in model order. uncovered: parameters in no block.

    Raises:
        InputError: bad scheme.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> data = (torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double())
    >>> hessian = lh.Hessian(lh.Objective(model, data, torch.nn.MSELoss()))
    >>> hessian.matvec(torch.tensor([1.0, 0.0]).double())      # 2 x x'
    tensor([2., 4.], dtype=torch.float64)
    """

    curvature = HESSIAN
