"""Losses and models that differentiate the network have their value with gradients off, and others cost no memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.objective.item_losses import item_losses
from layerhess.objective.losses import evaluation_of


def slopes(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Sum of (du/dx)^2, written without a thought of gradients being off."""
    x = batch[0].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().sum(), len(x)


def slopes_by_transform(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    slope = torch.func.vmap(torch.func.grad(lambda x: model(x[None])[0, 0]))(batch[0])
    return slope.square().sum(), len(slope)


class Forces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # as some force fields do
            return torch.zeros_like(x)
        x.requires_grad_(True)
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def _objective(loss: Any, model: nn.Module | None = None) -> lh.Objective:
    torch.manual_seed(0)
    model = Forces().energy if model is None else model
    return lh.Objective(model, (torch.randn(6, 3), torch.randn(6, 3)), loss)


@pytest.mark.parametrize("loss", [slopes, slopes_by_transform])
def test_a_loss_that_differentiates_has_the_same_value_without_gradients(loss: Any) -> None:
    objective = _objective(lh.batch_loss(loss))
    with objective.session():
        batch = next(objective.batches())
        value, count = objective.terms(batch)
        with torch.no_grad():
            for _ in range(2):
                alone, same = objective.terms(batch)
                assert torch.equal(alone, value) and same == count and alone.grad_fn is None
            seen = objective.evaluation.surveyed(objective.model, batch, "batch 0")
            assert torch.equal(seen.loss, value) and not torch.is_grad_enabled()


def test_a_model_that_differentiates_in_some_way_only_is_evaluated_that_way() -> None:
    objective = _objective(nn.MSELoss(), Forces())
    with objective.session():
        batch = next(objective.batches())
        judged = objective.evaluation.with_output(objective.model, batch)
        assert judged.output.abs().max() > 0.01
        with torch.no_grad():
            seen = objective.evaluation.surveyed(objective.model, batch, "batch 0")
            losses, _ = item_losses(objective.evaluation, objective.model, batch, "item")
        assert seen.output is not None and torch.equal(seen.output, judged.output) and seen.output.grad_fn is None
        assert torch.allclose(losses.sum(), judged.loss) and losses.grad_fn is None


def test_batches_of_which_only_some_differentiate() -> None:
    def mixed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return slopes(model, batch) if len(batch[0]) > 3 else (model(batch[0]).square().sum(), len(batch[0]))

    evaluation, model = evaluation_of(lh.batch_loss(mixed)), Forces().energy
    few, many = (torch.randn(2, 3),), (torch.randn(5, 3),)
    with torch.no_grad():
        values = [evaluation(model, batch)[0] for batch in (few, many, few, many)]
    assert torch.equal(values[0], values[2]) and torch.equal(values[1], values[3])
    assert torch.equal(values[1], slopes(model, many)[0])


def test_nothing_is_saved_for_a_loss_that_does_not_differentiate() -> None:
    kept: list[weakref.ref[Tensor]] = []

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not any(ref() is not None for ref in kept[:-1])  # only the latest activation may be alive
            made = torch.tanh(x)  # autograd would save it
            kept.append(weakref.ref(made))
            return made

    model = nn.Sequential(nn.Linear(3, 4), *(Noting() for _ in range(5)), nn.Linear(4, 3))
    evaluation = evaluation_of(nn.MSELoss())
    with torch.no_grad():
        value, _ = evaluation(model, (torch.randn(6, 3), torch.randn(6, 3)))
    assert value.grad_fn is None and len(kept) == 5


def test_an_error_of_the_loss_is_its_own() -> None:
    def broken(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        raise RuntimeError("of the user")

    with torch.no_grad(), pytest.raises(RuntimeError, match="^of the user$"):
        evaluation_of(lh.batch_loss(broken))(nn.Linear(1, 1), ())
