"""Moves weights by their last digit: what a number changes by then is about its rounding error.

All roundings after the weights fall anew, as in stochastic arithmetic (Vignes 1993, "A stochastic arithmetic for
reliable scientific computation"; Parker 1997, "Monte Carlo arithmetic").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from layerhess.objective.snapshot import kept_values


def perturb(parameters: Iterable[Tensor], dtype: torch.dtype, seed: int = 0) -> None:
    """Multiply every weight by 1 + eps or 1 - eps, in place.

    Args:
        parameters: tensors of any shapes; zeros stay. dtype: eps is its machine epsilon; of the coarsest dtype that the
            weights pass through, since a smaller change could be lost there. seed: of the signs.
    """
    eps = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in parameters:
            up = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.bool).to(tensor.device)
            tensor.copy_(torch.where(up, tensor * (1.0 + eps), tensor * (1.0 - eps)))


@contextmanager
def perturbed(parameters: Iterable[Tensor], dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Run the body at such weights; then put the same bits back."""
    tensors = list(parameters)
    with kept_values(tensors):
        perturb(tensors, dtype, seed)
        yield
