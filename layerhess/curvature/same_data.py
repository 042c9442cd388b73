"""Refuses data or a loss that change between two passes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.totals import Totals, add_up
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
    if not _equal(objective, loss_sum, known_sum) and not _by_form(objective, loss_sum, known_sum):
        modules = ", ".join(objective.random_modules[:4])
        raise CheckError(
            f"the loss over the whole data changes from pass to pass ({known_sum / count:.9g}, then "
            f"{loss_sum / count:.9g})",
            where=f"active randomness in {modules}" if modules else "the loss, the model or the data",
            what_to_do="use mode='eval' to switch dropout off; remove random augmentation and noise"
            if modules
            else "use mode='eval', drop_last=False, and data and a loss without randomness",
        )


def _equal(objective: Objective, first: float, second: float) -> bool:
    return abs(first - second) <= loss_tolerance(objective.dtype) * max(abs(first), abs(second))


def _by_form(objective: Objective, now: float, known: float) -> bool:
    """Whether the loss repeats, and only the form of functions in which products are made moves it from ``known``.

    The loss of a net that almost interpolates its data is a difference of near numbers: one form of a norm or a softmax
    rounds to another than the next. Two more passes, where a loss otherwise would be refused.
    """
    plain = _loss_sum(objective, nullcontext())
    if not _equal(objective, plain, known):
        return False
    rewritten = _loss_sum(objective, Rewritten())
    return abs(now - rewritten) <= 10.0 * abs(rewritten - plain) + loss_tolerance(objective.dtype) * abs(now)


def _loss_sum(objective: Objective, form: AbstractContextManager[Any]) -> float:
    def share(batch: Any, totals: Totals) -> None:
        with torch.no_grad(), form:
            totals.add("loss", float(objective.terms(batch)[0].double()))

    return float(add_up(objective.batches(), share, group=objective.group).total("loss"))


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
