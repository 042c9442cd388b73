"""Moves weights by their last digit: what a number changes by then is about its rounding error.

All roundings after the weights fall anew, as in stochastic arithmetic (Vignes 1993, "A stochastic arithmetic for
reliable scientific computation"; Parker 1997, "Monte Carlo arithmetic").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from layerhess.objective.containers import tree_map
from layerhess.objective.objective import Objective
from layerhess.objective.parameters import copied, trainable
from layerhess.objective.snapshot import kept_values

LAST_DIGITS = 10.0  # two evaluations of a loss may differ by so many times what it changes by with all last digits


def perturb(tensors: Iterable[Tensor], dtype: torch.dtype, seed: int = 0) -> None:
    """Multiply half of every tensor's entries by 1 + eps, the others by 1 - eps, in place.

    A large bias rounds as before wherever all of it moves one way, and a softmax does not see that.

    Args:
        tensors: of any shapes; zeros stay. dtype: eps is its machine epsilon; of the coarsest dtype that the weights
            pass through, since a smaller change could be lost there. seed: of the halves.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(_moved(tensor, torch.finfo(dtype).eps, generator))


@contextmanager
def perturbed(tensors: Iterable[Tensor], dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Run the body at such weights; then put the same bits back."""
    own = list(tensors)
    with kept_values(own):
        perturb(own, dtype, seed)
        yield


def perturbed_copy(objective: Objective, data: list[Any], dtype: torch.dtype, seed: int) -> Objective:
    """The same loss on a copy of the model and on ``data``, each in its own dtype, all moved by the last digit.

    Frozen weights and numbers of the data move too: what is computed of them alone is rounded as well. Whole numbers in
    buffers and data stay, which may be indices, masks or counts.

    Raises:
        Exception: whatever ``copy.deepcopy`` raises for a model that cannot be copied.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    eps = torch.finfo(dtype).eps

    def moved(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        made = torch.where(value == value.round(), value, _moved(value, eps, generator))
        return made.detach().requires_grad_(value.requires_grad)

    made = objective.narrowed([tree_map(moved, batch) for batch in data])
    made.model, made.origin = copied(objective.model), None
    made.parameters, made.frozen = trainable(made.model)
    perturb((p for p in made.model.parameters() if p.is_floating_point()), dtype, seed)
    with torch.no_grad():
        for buffer in made.model.buffers():
            buffer.copy_(moved(buffer))
    return made


def _moved(tensor: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    up = torch.randperm(tensor.numel(), generator=generator, device="cpu") % 2 == 0
    up = up.reshape(tensor.shape).to(tensor.device)
    return torch.where(up, tensor * (1.0 + eps), tensor * (1.0 - eps))
