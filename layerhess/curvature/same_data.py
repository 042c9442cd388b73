"""Refuses data or a loss that change between two passes."""

from __future__ import annotations

from typing import Any

import torch

from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.errors import CheckError, InputError
from layerhess.objective.objective import Objective
from layerhess.objective.perturbation import perturbed_copy
from layerhess.objective.snapshot import preserved_random_state

LAST_DIGITS = 10.0  # a loss may change by so many times what all last digits change it by
EXPLAINED = 1e-3  # relative; a larger change is none of rounding


def refuse_changed(objective: Objective, now: tuple[float, float], expected: tuple[float, float]) -> None:
    """Refuse a (loss sum, count) over the whole data that is not the expected one.

    Raises:
        InputError: the count changed. CheckError: the loss did, by more than the order of summation explains, and by
            more than a change of the weights' and the data's last digits does.
    """
    (loss_sum, count), (known_sum, known_count) = now, expected
    if abs(count - known_count) > 1e-9 * abs(count):
        raise changed(f"its count is {count:g} where it was {known_count:g}")
    off = abs(loss_sum - known_sum) / max(abs(loss_sum), abs(known_sum), 1e-300)
    if not off <= loss_tolerance(objective.dtype) and not off <= min(EXPLAINED, LAST_DIGITS * _rounding(objective)):
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
    """By how much the first batch's loss changes with all last digits, relative; 0 where that cannot be told.

    A loss on forces amplifies them, and where a sum begins in memory is enough for other ones.
    """
    if objective.random_modules:
        return 0.0
    try:
        with preserved_random_state():
            batch = next(iter(objective.batches()))
            copies = [perturbed_copy(objective, [batch], objective.dtype, seed) for seed in range(3)]
            own = _loss(objective, batch)
            return max(abs(_loss(copy, copy.data[0]) - own) for copy in copies) / abs(own)
    except Exception:  # data that ends, a model that cannot be copied
        return 0.0


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
