"""What Gauss-Newton and the empirical Fisher take for granted, on losses that do not grant it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from checked_network import CE, X, Y, mlp, objective
from layerhess.checks.output import check_cut, check_items, notes_on_convexity
from layerhess.curvature.counters import Counters
from layerhess.curvature.output_graph import FisherGraph
from layerhess.errors import CheckError, InputError


@pytest.mark.parametrize("weight", [0.0, 1e-6, 1e-2])
def test_a_gradient_beside_the_output_is_measured(weight: float) -> None:
    model = mlp()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + weight * model[2].bias.square().sum()

    made = objective(model, loss)
    names = list(made.parameters)
    with made.session():
        inputs = list(made.parameters.values())
        whole = torch.autograd.grad(9 * loss(model(X), Y), inputs)
        alone = torch.autograd.grad(9 * F.cross_entropy(model(X), Y), inputs)
        share = float((whole[3] - alone[3]).norm() / whole[3].norm())
        if weight > 1e-3:
            with pytest.raises(CheckError, match=f"{share:.1e} of a gradient") as caught:
                check_cut(made, [(X, Y)], [4], names, Counters())
            assert caught.value.where == "parameters 2.bias"
        else:
            detail = check_cut(made, [(X, Y)], [4], names, Counters()).detail
            figure = float(detail.split("to ")[-1])
            assert figure == pytest.approx(share, rel=0.1, abs=1e-12)


def test_a_gradient_that_is_not_finite_names_its_batch() -> None:
    made = objective(mlp(), lambda o, t: (o - o.detach()).square().sum(1).sqrt().mean())
    with made.session(), pytest.raises(InputError, match="gradient is NaN or infinite") as caught:
        check_cut(made, [(X, Y)], [4], list(made.parameters), Counters())
    assert caught.value.where.startswith("batch 4, 0.weight, 0.bias, 2.weight")


LOSSES: dict[str, tuple[Any, tuple[bool, bool]]] = {
    "convex": (CE, (False, False)),
    "linear": (nn.L1Loss(), (True, False)),
    "concave": (lambda o, t: -(o**2).mean(), (False, True)),
    "indefinite in one item": (
        lambda o, t: (o**2 * torch.tensor([1.0] * 3 + [-1.0] + [1.0] * 5)[:, None]).mean(),
        (False, True),
    ),
    "quadratic": (lambda o, t: (o**2).mean(), (False, False)),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_said_of_a_losss_convexity(kind: str) -> None:
    loss, (linear, indefinite) = LOSSES[kind]
    data = (X, torch.zeros(9, 3).double()) if kind == "linear" else (X, Y)
    made = objective(loss=loss, data=data)
    with made.session():
        notes = notes_on_convexity(made, [data], 0, Counters())
        nothing = notes_on_convexity(made, [(X[:0], data[1][:0])], 0, Counters()) if kind == "convex" else []
    assert [("linear in" in n, "not convex" in n) for n in notes] == [(linear, indefinite)] * (linear or indefinite)
    assert nothing == []


def test_items_must_add_up_and_be_alone() -> None:
    made = objective()
    with made.session():
        detail = check_items(made, [(X, Y)], FisherGraph, torch.float64, Counters()).detail
    assert all(float(figure) < 1e-12 for figure in re.findall(r"to (\d\S+)", detail))

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            z = self.inner(x)
            return z - z.mean(dim=0)

    tied = objective(Centred())
    with tied.session():
        with pytest.raises(InputError, match="depends on the other items") as caught:
            check_items(tied, [(X, Y)], FisherGraph, torch.float64, Counters())
        z = tied.model.inner(X)
        whole = F.cross_entropy(z - z.mean(0), Y, reduction="none")
        parts = torch.cat(
            [F.cross_entropy(p - p.mean(0), y, reduction="none") for p, y in ((z[:3], Y[:3]), (z[3:], Y[3:]))]
        )
        change = float(((whole - parts).abs().max() / whole.max()).detach())
    assert f"{change:.1e}" in str(caught.value) and caught.value.where == "Centred"
    with torch.no_grad():
        tied.model.inner[2].weight.zero_()
        tied.model.inner[2].bias.zero_()
    with (
        tied.session(),
        pytest.raises(InputError, match="depends on the other items"),
    ):
        check_items(tied, [(X, Y)], FisherGraph, torch.float64, Counters())
    with made.session():
        detail = check_items(made, [(X[:1], Y[:1])], FisherGraph, torch.float64, Counters()).detail
    assert detail.endswith("no batch can be cut to see more of them")
    summed = objective(loss=lh.batch_loss(lambda model, batch: (CE(model(batch[0]), batch[1]), 1)))
    with summed.session(), pytest.raises(InputError, match="do not add up"):
        check_items(summed, [(X, Y)], FisherGraph, torch.float64, Counters())
