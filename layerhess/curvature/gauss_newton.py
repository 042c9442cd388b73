"""The generalised Gauss-Newton matrix of the mean loss."""

from __future__ import annotations

from layerhess.curvature.matrices import GAUSS_NEWTON
from layerhess.curvature.operator import Operator


class GaussNewton(Operator):
    """G = (1/count) sum J' S J and its diagonal blocks: J = d output / d theta, S = d2 loss / d output2.

    The Hessian less the curvature of the network itself (Schraudolph 2002; Martens 2020). Positive semidefinite where
    the loss is convex in the output. G depends on where the cut between network and loss is: at the input of the
    criterion; at ``.logits`` for a model's own ``.loss``; at ``output=`` of :class:`layerhess.batch_loss`. S is never
    formed. Same arguments, methods and normalisation as :class:`layerhess.Hessian`.

    Raises:
        InputError: bad scheme; a ``batch_loss`` without ``output=``.

    >>> import torch, layerhess as lh
    >>> class Square(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.tensor([3.0]))
    ...     def forward(self, x):
    ...         return self.w ** 2 * x
    >>> objective = lh.Objective(Square(), (torch.ones(1), torch.zeros(1)), torch.nn.MSELoss())
    >>> lh.GaussNewton(objective).to_dense(), lh.Hessian(objective).to_dense()      # 2 (2w)^2 and 12 w^2
    (tensor([[72.]]), tensor([[108.]]))
    """

    curvature = GAUSS_NEWTON
