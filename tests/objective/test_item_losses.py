"""One loss for every item of a batch, and losses that have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from two_batches import batches, net
from witness import refused


@pytest.mark.parametrize(
    ("loss", "name"),
    [(nn.MSELoss(), "MSELoss"), (lambda z, y: z.mean(), "lambda"), (lh.batch_loss(lambda m, b: 0), "")],
)
def test_the_token_level_of_another_loss_is_refused(loss: Any, name: str) -> None:
    model = net()
    with refused(model, "each counted term of a cross entropy", name, "item level"):
        lh.EmpiricalFisher(lh.Objective(model, batches()[0], loss), level="token")


def test_items_that_cannot_be_told_apart_are_refused() -> None:
    model, (x, y) = net(), batches()[0]

    def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), 7

    data = {"x": x, "y": y, "other": torch.zeros(2)}
    with refused(model, "cannot be told apart", "dimension 0"):
        lh.analyze(lh.Objective(model, data, lh.batch_loss(summed)), operator="empirical_fisher")
