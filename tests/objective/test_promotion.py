"""Copies in float64 of models whose own code makes tensors in float32, or casts to it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layerhess as lh
from layerhess.objective.parameters import copied

TENTH = torch.tensor(0.1)  # what a function closes over, in float32


class Casting(nn.Module):
    """Its forward casts and makes constants as published models do; ``exact`` writes the same function out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        counts = torch.bincount(torch.tensor([0, 0, 2]), minlength=3) / 3
        shifted = x + torch.zeros(len(x), 3, dtype=torch.float32) + counts.float()
        hidden = torch.softmax(self.inner(shifted), -1, dtype=torch.float32).to(torch.float32)
        summed = torch.zeros(len(x), 4).index_add_(0, torch.arange(len(x)), hidden)
        return F.linear(summed * scale, self.head.weight.float(), self.head.bias) @ (TENTH * torch.eye(2))

    def exact(self, x: Tensor) -> Tensor:
        shifted = x + torch.tensor([2 / 3, 0, 1 / 3], dtype=x.dtype)
        logits = shifted @ self.inner.weight.T + self.inner.bias
        hidden = logits.exp() / logits.exp().sum(-1, keepdim=True)
        return (hidden @ self.head.weight.T + self.head.bias) * TENTH.to(x.dtype)


def made() -> tuple[Casting, Tensor]:
    torch.manual_seed(0)
    return Casting(), torch.randn(5, 3)


@pytest.mark.parametrize("again", [False, True], ids=["copy", "copy of the copy"])
def test_a_float64_copy_of_a_model_that_casts_to_float32_has_the_digits_of_float64(again: bool) -> None:
    model, x = made()
    double = copied(model, torch.float64)
    double = copy.deepcopy(double) if again else double
    if again:
        model.double()  # and not the weights of what it was copied from
        with torch.no_grad():
            for weights in (*model.parameters(), *double.parameters()):
                weights.mul_(1.5)
    true = copy.deepcopy(model).double().exact(x.double())
    assert double(x.double()).dtype == torch.float64
    assert torch.allclose(double(x.double()), true, rtol=1e-13, atol=1e-14)


def test_gradients_of_such_a_copy_are_those_of_float64() -> None:
    model, x = made()
    double, plain = copied(model, torch.float64), copy.deepcopy(model).double()
    found = torch.autograd.grad(double(x.double()).square().sum(), list(double.parameters()))
    true = torch.autograd.grad(plain.exact(x.double()).square().sum(), list(plain.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(found, true, strict=True))


def test_coarser_casts_are_part_of_the_function_and_stay() -> None:
    class Quantised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.bfloat16().to(self.weight.dtype))

    torch.manual_seed(0)
    model, x = Quantised(3, 2), torch.randn(4, 3)
    rounded = x.bfloat16().double()
    true = F.linear(rounded, model.weight.double(), model.bias.double())
    assert torch.allclose(copied(model, torch.float64)(x.double()), true, rtol=1e-14)


def test_a_narrower_copy_casts_what_its_code_says() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).double().sum()

    assert copied(Doubled(3, 2).double(), torch.float32)(torch.ones(1, 3)).dtype == torch.float64


def test_the_copy_takes_the_same_arguments_and_leaves_the_default_dtype() -> None:
    model, x = made()
    double = copied(model, torch.float64)
    assert inspect.signature(double.forward) == inspect.signature(model.forward)
    assert torch.equal(double(x.double(), scale=2.0), double(x.double(), 2.0))
    with pytest.raises(RuntimeError, match="must match"):
        double(torch.ones(5, 7, dtype=torch.float64))
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(2).dtype == torch.float32 and torch.ones(1).double().float().dtype == torch.float32


@pytest.mark.parametrize("shift", [0.0, 100.0], ids=["small", "cancelling"])
def test_rounding_of_such_a_model_is_measured_and_its_bounds_hold(shift: float) -> None:
    model, x = made()
    with torch.no_grad():
        model.head.bias.add_(shift)  # behind it, outputs and targets cancel
        y = model(x) + 1e-3 * torch.randn(5, 2)
    found: Any = lh.analyze(lh.Objective(model, (x, y), nn.MSELoss()))
    assert not [note for note in found.notes if "assumed" in note]
    double = copy.deepcopy(model).double()
    for name, spectrum in found.blocks.items():
        assert spectrum.rounding_source == "measured" or spectrum.complete
        weights = dict(double.named_parameters())[name]
        loss = (double.exact(x.double()) - y.double()).square().mean()
        (slope,) = torch.autograd.grad(loss, weights, create_graph=True)
        rows = [torch.autograd.grad(s, weights, retain_graph=True)[0].flatten() for s in slope.flatten()]
        true = torch.linalg.eigvalsh(torch.stack(rows))[-1]
        assert abs(spectrum.eigenvalues[0] - float(true)) <= spectrum.error_bounds[0], name
