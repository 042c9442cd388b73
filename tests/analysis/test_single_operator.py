"""Calls on a single operator have no result with notes, so what the self-check doubts is a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh

ENTRIES: dict[str, Callable[[Any], Any]] = {
    "trace": lh.trace,
    "diagonal": lh.diagonal,
    "density": lh.density,
    "coupling": lh.coupling,
    "eigsh": lh.eigsh,
}
every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


def objective(loss: Any, *norm: nn.Module) -> lh.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), *norm, nn.Tanh(), nn.Linear(5, 3)).double()
    return lh.Objective(model, (torch.randn(20, 4).double(), torch.arange(20) % 3), loss)


def concave(output: Tensor, target: Tensor) -> Tensor:
    """One minus the probability of the right class: not convex in the logits."""
    return (1 - torch.softmax(output, 1).gather(1, target[:, None])).mean()


@every_entry
def test_gauss_newton_of_a_loss_that_is_not_convex(entry: Callable[[Any], Any]) -> None:
    with pytest.warns(lh.LayerhessWarning, match="may be indefinite") as caught:
        entry(lh.GaussNewton(objective(concave)))
    assert caught[0].filename == __file__  # it points at the call


@every_entry
def test_a_loss_that_ties_its_batch_together(entry: Callable[[Any], Any]) -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.warns(lh.LayerhessWarning, match="not the sum over its examples"):
        entry(lh.Hessian(objective(nn.CrossEntropyLoss(), Centred())))


@every_entry
def test_nothing_is_said_where_nothing_is_in_doubt(entry: Callable[[Any], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry(lh.GaussNewton(objective(nn.CrossEntropyLoss())))
        entry(lh.Hessian(objective(nn.CrossEntropyLoss())))
