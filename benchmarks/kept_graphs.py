"""Products with one target's Hessian on graphs that are kept: what anybody can write with PyTorch alone.

The gradient of each batch is made once so that it can be differentiated again; a product is then one backward pass
through each. Nothing of layerhess is used here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from .workloads import Problem

__all__ = ["KeptGraphs"]


class KeptGraphs:
    """The Hessian of the mean loss in some parameters.

    Args:
        rows: examples of each graph at most; a whole batch where None.

    Attributes:
        numel: the number of parameters. products: how many were made.
    """

    def __init__(self, problem: Problem, parameters: Sequence[nn.Parameter], rows: int | None = None) -> None:
        self._parameters = list(parameters)
        self._sizes = [p.numel() for p in parameters]
        self.numel, self.products = sum(self._sizes), 0
        dtype = self._parameters[0].dtype
        total = sum(y.numel() for _, y in problem.batches)
        self._slopes = []  # one for each graph, scaled so that they sum to the gradient of the mean loss
        for x, y in problem.batches:
            for part, target in zip(x.split(rows or len(x)), y.split(rows or len(y)), strict=True):
                inputs = part.to(dtype) if part.is_floating_point() else part
                loss = problem.loss(problem.model(inputs), target) * (target.numel() / total)
                self._slopes.append(torch.autograd.grad(loss, self._parameters, create_graph=True))

    def product(self, v: Tensor) -> Tensor:
        """H v, (numel,) like v."""
        self.products += 1
        shaped = [part.view_as(p) for part, p in zip(v.split(self._sizes), self._parameters, strict=True)]
        out = torch.zeros_like(v)
        for slope in self._slopes:
            parts = torch.autograd.grad(slope, self._parameters, shaped, retain_graph=True)
            out += torch.cat([part.flatten() for part in parts])
        return out

    def to_scipy(self) -> LinearOperator:
        """The same for vectors of NumPy."""
        like = self._parameters[0]
        kind = np.float64 if like.dtype == torch.float64 else np.float32

        def matvec(v: np.ndarray) -> np.ndarray:
            vector = torch.from_numpy(np.ascontiguousarray(v.ravel())).to(like.device, like.dtype)
            return self.product(vector).cpu().numpy()

        return LinearOperator((self.numel,) * 2, matvec=matvec, dtype=kind)
