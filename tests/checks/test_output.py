"""What Gauss-Newton and the empirical Fisher take for granted of a loss: refused, or noted, where it does not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from two_batches import batches, net, summed
from witness import refused


def test_a_loss_that_is_not_made_from_the_output_is_refused() -> None:
    model = net()
    loss = lh.batch_loss(lambda z, batch: summed(model, batch), output=lambda model, batch: model(batch[0]))
    with refused(model, "not computed from the output", "very tensor"):
        lh.analyze(lh.Objective(model, batches(), loss), operator="gauss_newton")


@pytest.mark.parametrize("weight", [1.0, 1e-2])
def test_a_loss_that_reaches_the_parameters_beside_the_output_is_refused(weight: float) -> None:
    model = net()

    def penalised(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target) + weight * model[0].weight.square().sum()

    objective = lh.Objective(model, batches(), penalised)
    lh.analyze(objective)  # nothing is wrong with its Hessian
    with pytest.raises(lh.CheckError, match="beside the model's output") as caught:
        lh.analyze(objective, operator="gauss_newton")
    assert "0.weight" in caught.value.where and "hessian" in caught.value.what_to_do
    with pytest.raises(lh.CheckError, match="beside the model's output"):
        lh.eigsh(lh.GaussNewton(objective))


@pytest.mark.parametrize("loss", [nn.NLLLoss(), lambda z, y: (z - y[:, None]).abs().mean(1).mean()])
def test_a_loss_that_is_linear_in_the_output_gives_zero_with_a_note(loss: Any) -> None:
    model = net(nn.LogSoftmax(dim=1))
    result = lh.analyze(lh.Objective(model, batches(), loss), operator="gauss_newton")
    assert any("linear in the model's output" in note and "log_softmax" in note for note in result.notes)
    assert all(s.ok and not s.eigenvalues.any() for s in result.spectra())
    assert all(s.status.startswith("zero") for s in result.blocks.values())


@pytest.mark.parametrize("convex", [True, False])
def test_a_loss_that_is_not_convex_in_the_output_gets_a_note(convex: bool) -> None:
    model = net()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if convex:
            return nn.functional.cross_entropy(output, target)
        return (1 - torch.softmax(output, 1).gather(1, target[:, None])).mean()

    result = lh.analyze(lh.Objective(model, batches(), loss), operator="gauss_newton", bottom=1)
    assert any("may be indefinite" in note for note in result.notes) is not convex
    assert result.full is not None
    assert (result.full.eigenvalues[-1] < -result.full.error_bounds[-1]) is not convex


def test_items_that_do_not_add_up_are_refused() -> None:
    """A root mean square is no sum over items. For a single batch it is a fair loss otherwise."""
    model, (x, _) = net(), batches()[0]

    def root(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean().sqrt()

    objective = lh.Objective(model, (x, torch.zeros(7, 3).double()), root)
    lh.analyze(objective)
    with refused(model, "do not add up", "gauss_newton"):
        lh.analyze(objective, operator="empirical_fisher")
