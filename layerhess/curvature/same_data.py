"""Refuses data or a loss that change between two passes."""

from __future__ import annotations

import math
from typing import Any

import torch

from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import CheckError, InputError
from layerhess.objective.objective import Objective
from layerhess.objective.perturbation import LAST_DIGITS, perturbed_copy
from layerhess.objective.snapshot import preserved_random_state

EXPLAINED = 1e-3  # relative; a larger change is none of rounding
COPIES = 3  # of the model, one after the other


def refuse_changed(objective: Objective, now: tuple[float, float], expected: tuple[float, float]) -> None:
    """Refuse a (loss sum, count) over the whole data that is not the expected one.

    Raises:
        InputError: the count changed. CheckError: the loss did, by more than the order of summation explains, and by
            more than a change of the weights' and the data's last digits does.
    """
    (loss_sum, count), (known_sum, known_count) = now, expected
    if abs(count - known_count) > 1e-9 * abs(count):
        raise changed(f"its count is {count:g} where it was {known_count:g}")
    size = max(abs(loss_sum), abs(known_sum))
    off = abs(loss_sum - known_sum)
    summed = off <= loss_tolerance(objective.dtype) * size
    if not (summed or (off <= EXPLAINED * size and off <= LAST_DIGITS * _rounding(objective))):
        modules = ", ".join(objective.random_modules[:4])
        raise CheckError(
            f"the loss over the whole data changes from pass to pass ({known_sum / count:.9g}, then "
            f"{loss_sum / count:.9g})",
            where=f"active randomness in {modules}" if modules else "the loss, the model or the data",
            what_to_do="use mode='eval' to switch dropout off; remove random augmentation and noise"
            if modules
            else "use mode='eval', drop_last=False, and data and a loss without randomness",
        )


def _rounding(objective: Objective) -> float:
    """By how much the loss's sum over the data changes with all last digits; 0 where that cannot be told.

    A loss on forces amplifies them, so that two ways to compute it, which differ in those, give two numbers.
    """

    def share(batch: Any, totals: Totals) -> None:
        own = _loss(objective, batch)
        if own != _loss(objective, batch):
            raise ArithmeticError("it draws random numbers")
        for seed in range(COPIES):
            copy = perturbed_copy(objective, [batch], objective.dtype, seed)
            totals.add(seed, _loss(copy, copy.data[0]) - own)

    if objective.random_modules:
        return 0.0
    try:
        with preserved_random_state():
            totals = add_up(objective.batches(), share, group=objective.group)
    except Exception:  # also of data that ends, and of a model that cannot be copied
        return 0.0
    moved = [abs(float(totals.total(seed))) for seed in range(COPIES)]
    return max(moved) if all(map(math.isfinite, moved)) else 0.0


def _loss(objective: Objective, batch: Any) -> float:
    with preserved_random_state(), Rewritten():
        return float(objective.terms(batch)[0].detach())


def changed(how: str) -> InputError:
    """The refusal of data that is not what it was at an earlier pass."""
    return InputError(
        f"the data changed between two passes: {how}",
        where="data",
        what_to_do="pass a list of batches or a DataLoader that yields the same examples at every pass",
    )


def loss_tolerance(dtype: torch.dtype) -> float:
    """Relative change of a total loss that the order of summation alone may cause."""
    return max(1e-6, 100.0 * torch.finfo(dtype).eps) if dtype != torch.float64 else 1e-6
