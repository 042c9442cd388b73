"""Finite differences of gradients and of outputs, on derivatives that are wrong by a known factor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checked_network import CE, Bent, BentTanh, X, Y, full_of, mlp, objective
from layerhess.checks.finite_differences import finite_differences, scaled_direction
from layerhess.checks.jacobian import Moves, disagreements
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.output_graph import GaussNewtonGraph
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective


@pytest.mark.parametrize("wrong", [1.0, 1.01, 3.0])
def test_differences_of_gradients_agree_or_say_by_how_much_not(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BentTanh, "wrong", wrong)
    made = objective(mlp(Bent()))
    right = objective(mlp(nn.Tanh()))
    blocks = {n: make_block(n, {n: p}) for n, p in made.parameters.items()}
    before = {n: p.detach().clone() for n, p in made.parameters.items()}
    counters = Counters()
    with made.session(), right.session():
        judged, step = finite_differences(made, (X, Y), blocks, full_of(made), 5, counters)
        direction = scaled_direction(made, full_of(made), 5)
        names = list(made.parameters)
        bad = HessianGraph(made, (X, Y), names, Counters()).product(names, direction)
        good = HessianGraph(right, (X, Y), names, Counters()).product(names, direction)
    assert set(judged) == set(names) and 0.0 < step < 1e-4
    for name, ours, theirs in zip(names, bad, good, strict=True):
        assert ours is not None and theirs is not None
        off = float((ours - theirs).norm() / ours.norm())
        assert judged[name] == pytest.approx(off, rel=1e-2, abs=1e-6), name
    for name, p in made.parameters.items():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-15)
    assert counters.total("forwards") == counters.total("backwards")


def test_the_direction_is_as_long_as_each_tensor_and_padding_stays() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, padding_idx=3), nn.Linear(2, 3)).double()
    with torch.no_grad():
        model[1].bias.zero_()
    made = Objective(model, (torch.tensor([0, 3]), torch.tensor([0, 1])), CE)
    direction = scaled_direction(made, full_of(made), 0)
    sizes = {n: float(p.detach().norm()) for n, p in made.parameters.items()}
    least = min(size for size in sizes.values() if size > 0.0)
    for name, part in direction.items():
        assert float(part.norm()) == pytest.approx(sizes[name] or least), name
    assert not direction["0.weight"][3].any() and direction["0.weight"][2].any()
    drawn = random_unit(full_of(made).numel, 0, "finite differences", 0)
    own = full_of(made).split(drawn)["1.weight"]
    torch.testing.assert_close(direction["1.weight"] / direction["1.weight"].norm(), own / own.norm())


# -- the Jacobian ------------------------------------------------------------------------------------------------------


class BentLine(torch.autograd.Function):
    """2 x; its backward is 2 g, and the derivative of that in g is 2 ``wrong``: J is not the transpose of J'."""

    wrong = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return BentBack.apply(g)


class BentBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return 2.0 * g

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return 2.0 * BentLine.wrong * h


class Line(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BentLine.apply(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrong", [1.0, 1.01, 0.5, math.nan])
def test_products_with_the_jacobian_and_its_transpose(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """J is ``wrong`` times what it should be below the fault: lengths are off by wrong^2, forms by wrong."""
    monkeypatch.setattr(BentLine, "wrong", wrong)
    made = objective(mlp(Line()))
    names = list(made.parameters)
    with made.session():
        found = disagreements(made, (X, Y), names, GaussNewtonGraph, 0, Counters())
        moves = Moves(made, (X, Y), full_of(made), GaussNewtonGraph, 0, Counters())
        off = moves.disagreement(["0.weight"])
        fine = moves.disagreement(["2.weight"])
    assert fine == pytest.approx(0.0, abs=1e-8) and moves.error < 1e-4
    for name in ("2.weight", "2.bias"):
        assert found[name] < 1e-12
    for name in ("0.weight", "0.bias"):
        expected = math.inf if math.isnan(wrong) else abs(wrong**2 - wrong) / max(wrong**2, wrong)
        assert found[name] == pytest.approx(expected, abs=1e-8)  # less what rounding explains, 1e6 eps
    if not math.isnan(wrong):
        assert off == pytest.approx(abs(wrong - 1.0) / wrong, rel=1e-4, abs=1e-8)


def test_an_output_that_does_not_move_tells_nothing() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight.zero_()
    made = objective(model)
    with made.session():
        moves = Moves(made, (X, Y), full_of(made), GaussNewtonGraph, 0, Counters())
        assert moves.disagreement(["0.weight"]) is None and moves.disagreement(["2.bias"]) is not None


def test_what_the_output_does_not_depend_on_is_absent() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    made = objective(Partly())
    with made.session():
        found = disagreements(made, (X, Y), list(made.parameters), GaussNewtonGraph, 0, Counters())
        moves = Moves(made, (X, Y), full_of(made), GaussNewtonGraph, 0, Counters())
        assert moves.disagreement(["unused.weight"]) is None and moves.disagreement(["used.weight"]) is not None
    assert set(found) == {"used.weight", "used.bias"}
