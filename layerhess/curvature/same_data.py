"""Refuses data or a loss that change between two passes."""

from __future__ import annotations

import torch

from layerhess.errors import CheckError, InputError
from layerhess.objective.objective import Objective


def refuse_changed(objective: Objective, now: tuple[float, float], expected: tuple[float, float]) -> None:
    """Refuse a (loss sum, count) over the whole data that is not the expected one.

    Raises:
        InputError: the count changed. CheckError: the loss did, by more than the order of summation explains.
    """
    (loss_sum, count), (known_sum, known_count) = now, expected
    if abs(count - known_count) > 1e-9 * abs(count):
        raise changed(f"its count is {count:g} where it was {known_count:g}")
    if not abs(loss_sum - known_sum) <= loss_tolerance(objective.dtype) * max(abs(loss_sum), abs(known_sum)):
        modules = ", ".join(objective.random_modules[:4])
        raise CheckError(
            f"the loss over the whole data changes from pass to pass ({known_sum / count:.9g}, then "
            f"{loss_sum / count:.9g})",
            where=f"active randomness in {modules}" if modules else "the loss, the model or the data",
            what_to_do="use mode='eval' to switch dropout off; remove random augmentation and noise"
            if modules
            else "use mode='eval', drop_last=False, and data and a loss without randomness",
        )


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
