"""Hessian-vector products by torch alone: the derivative of the gradient along a vector, twice in reverse."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from .subject import Subject


def hessian(subject: Subject, parameters: dict[str, nn.Parameter]) -> LinearOperator:
    """The Hessian of the mean loss over all batches in these parameters, (n, n), in the subject's dtype.

    The graph of each batch's gradient is kept; a fused LSTM has such a graph on the CPU as well.
    """
    wanted = list(parameters.values())
    sizes = [parameter.numel() for parameter in wanted]
    pairs = [subject.total(subject.model, batch) for batch in subject.batches]
    count = sum(number for _, number in pairs)
    slopes = [_gradient(loss / count, wanted) for loss, _ in pairs]

    def product(vector: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(wanted[0].dtype)
        direction = [part.view_as(parameter) for part, parameter in zip(given.split(sizes), wanted, strict=True)]
        made = torch.zeros_like(given)
        for slope in slopes:
            live = [(s, d) for s, d in zip(slope, direction, strict=True) if s.requires_grad]
            if live:
                ends, weights = zip(*live, strict=True)
                parts = torch.autograd.grad(ends, wanted, weights, retain_graph=True, allow_unused=True)
                made += torch.cat([_or_zeros(p, w).reshape(-1) for p, w in zip(parts, wanted, strict=True)])
        return made.numpy()

    return LinearOperator((sum(sizes),) * 2, matvec=product, dtype=np.float64)


def _gradient(loss: Tensor, wanted: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    return [_or_zeros(part, parameter) for part, parameter in zip(found, wanted, strict=True)]


def _or_zeros(part: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if part is None else part
