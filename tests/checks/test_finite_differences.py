"""Products against finite differences of gradients: a hand-written backward pass that is wrong is found and named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from faulty_functions import Applies, Cut, kinked
from layerhess.checks.finite_differences import beyond_error, finite_differences
from layerhess.curvature.counters import Counters
from layerhess.objective.blocks import make_block
from refusals import CE, PAIRS, Table, analysis, mlp
from witness import refused

TABLE = Table()
case = TABLE.case

for _name, _model in {"smooth": lambda f: mlp(Applies(f)), "with kinks": kinked}.items():
    for _full in (True, False):
        case(f"wrong second derivative: a hand-written backward, {_name}, full={_full}", "2 (Cut)", "skip_failed")(
            analysis(model=lambda model=_model: model(Cut), full=_full)
        )


@pytest.mark.parametrize("name", TABLE)
def test_models_that_cannot_be_analysed_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


def test_skip_failed_gives_nothing_where_the_fault_cannot_be_located() -> None:
    """With a cut backward pass each diagonal block is symmetric, and wrong: only the whole gives it away."""
    result = lh.analyze(lh.Objective(kinked(Cut), PAIRS, CE), full=False, skip_failed=True)
    assert all(spectrum.status.startswith("refused") for spectrum in result.blocks.values())


def test_finite_differences_name_the_tensor_inside_a_block_of_many() -> None:
    """In one block of everything, each fault of a hand-written backward pass would drown."""
    model = mlp(Applies(Cut), nn.Tanh())
    with refused(model, "a self-check failed", "2 (Cut)"):
        lh.analyze(lh.Objective(model, PAIRS, CE), blocks={"all": "*"}, full=False)


def test_a_step_that_tells_nothing_gives_no_figure() -> None:
    assert beyond_error(3.0, 0.5, 100.0) == pytest.approx(0.015)
    assert beyond_error(1.0, 0.5, 100.0) == 0.0
    assert beyond_error(1.0, 3.0, 100.0) is None and beyond_error(1.0, 1.0, 100.0, 1.5) is None
    assert beyond_error(0.0, 0.0, 0.0) is None and beyond_error(math.nan, 0.0, math.nan) is None


@pytest.mark.parametrize("operator", ["hessian", "gauss_newton", "empirical_fisher"])
def test_a_network_that_is_curved_in_a_narrow_place_is_no_fault(operator: str) -> None:
    """sigmoid(w'x) at w'x = 0 with inputs of 1e7: over an ordinary step it jumps from 0 to 1."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False, dtype=torch.float64), nn.Sigmoid())
    torch.nn.init.ones_(model[0].weight)
    x, y = torch.tensor([[1e7, -1e7]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    found = lh.analyze(lh.Objective(model, [(x, y)], nn.MSELoss()), operator=operator, top=1)["0.weight"]
    factor = {"hessian": 2.0, "gauss_newton": 2.0, "empirical_fisher": (2.0 * 0.2) ** 2}[operator]
    assert found.eigenvalues[0] == pytest.approx(factor * 0.25**2 * 2e14, rel=1e-12)


def test_a_wrong_derivative_in_a_narrow_place_is_found_all_the_same() -> None:
    """A hand-written sigmoid without its second derivative; of one unit, the product is symmetric."""

    class Unit(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            p = z.sigmoid()
            ctx.save_for_backward(p)
            return p

        @staticmethod
        def backward(ctx: Any, *above: Tensor) -> Tensor:
            (p,) = ctx.saved_tensors
            return above[0] * (p * (1.0 - p)).detach()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1, bias=False, dtype=torch.float64)
            torch.nn.init.ones_(self.linear.weight)

        def forward(self, x: Tensor) -> Tensor:
            return Unit.apply(self.linear(x))  # type: ignore[no-any-return,no-untyped-call]

    x, y = torch.tensor([[1e7 + 1.0, -1e7]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    objective = lh.Objective(Model(), [(x, y)], nn.MSELoss())
    block = make_block("all", objective.parameters)
    with objective.session():
        judged, _ = finite_differences(objective, (x, y), {"all": block}, block, 0, Counters())
    assert judged["all"] > 0.1
