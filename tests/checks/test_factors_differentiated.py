"""Forward passes that differentiate the network in some batches only, none of them in the licence's sample.

Weights then reach the output through a backward pass as well, which recorded layers do not show. Everything is compared
with exact products, on networks where these batches carry curvature that factors would miss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import layerhess as lh

Slope = Callable[[nn.Module, Tensor], Tensor]


def by_grad(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]


def by_backward(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    net(x).sum().backward(create_graph=True, inputs=[x])
    slope = x.grad
    assert slope is not None
    x.grad = None
    return slope


def by_transform(net: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda one: net(one[None])[0, 0]))(x)


def by_pullback(net: nn.Module, x: Tensor) -> Tensor:
    y, pull = torch.func.vjp(net, x)
    return pull(torch.ones_like(y))[0]


def by_pushforward(net: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jvp(net, (x,), (torch.ones_like(x),))[1].expand(-1, 3)


def by_dual_numbers(net: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x, torch.ones_like(x)))).tangent.expand(-1, 3)


def by_one_step(net: nn.Module, x: Tensor) -> Tensor:
    """A step of the parameters, in which those without a gradient stay: recorded layers hand their weights detached."""
    weights = dict(net.named_parameters())
    slopes = torch.autograd.grad(net(x).square().sum(), list(weights.values()), create_graph=True, allow_unused=True)
    pairs = zip(weights.items(), slopes, strict=True)
    moved = {name: weight if slope is None else weight - 0.05 * slope for (name, weight), slope in pairs}
    out = torch.func.functional_call(net, moved, (x,))
    assert isinstance(out, Tensor)
    return out.expand(-1, 3)


SLOPES: list[Slope] = [
    by_grad,
    by_backward,
    by_transform,
    by_pullback,
    by_pushforward,
    by_dual_numbers,
    by_one_step,
]


class Differentiating(nn.Module):
    """Values of a net in most batches, its slopes where asked for: measured values and collocation points."""

    def __init__(self, act: nn.Module, slope: Slope) -> None:
        super().__init__()
        self.net, self.slope = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 1)), slope

    def forward(self, x: Tensor, slopes: Tensor) -> Tensor:
        return self.slope(self.net, x) if bool(slopes.any()) else self.net(x).expand(-1, 3)


def _objective(act: nn.Module, slope: Slope) -> lh.Objective:
    torch.manual_seed(0)
    model = Differentiating(act, slope).double()
    data = []
    for i in range(6):
        x, y = torch.randn(16, 3).double(), 3.0 * torch.randn(16, 3).double()
        chosen = i == 3  # the sample takes the first batch, that of the largest loss and one of the middle
        with torch.no_grad():
            near = model.net(x).expand(-1, 3)
        data.append(
            ((2.0 * x if chosen else x, torch.full((16,), chosen)), torch.zeros(16, 3).double() if chosen else near + y)
        )
    return lh.Objective(model, data, nn.MSELoss())


@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("slope", SLOPES)
def test_such_a_batch_is_served_exactly(slope: Slope, operator: str) -> None:
    objective = _objective(nn.ReLU(), slope)
    found = lh.analyze(objective, bottom=1, full=False, operator=operator)
    exact = lh.analyze(objective, bottom=1, full=False, operator=operator, path="exact")
    assert any("factors" in s.path for s in found.blocks.values())  # the other batches are: there is something to miss
    for name, one in found.blocks.items():
        other = exact.blocks[name]
        allowed = one.error_bounds + other.error_bounds + 1e-12
        assert (np.abs(one.eigenvalues - other.eigenvalues) <= allowed).all(), name


def test_a_penalty_on_slopes_in_the_loss_is_seen_as_well() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LeakyReLU(), nn.Linear(5, 2)).double()
    data = [{"x": torch.randn(16, 3).double(), "penalty": torch.full((16,), i == 3)} for i in range(6)]

    def output(model: nn.Module, batch: Any) -> Tensor:
        batch["x"].requires_grad_(True)
        made = model(batch["x"])
        assert isinstance(made, Tensor)
        return made

    def loss(z: Tensor, batch: Any) -> tuple[Tensor, int]:
        total = (z - 1.0).square().sum()
        if bool(batch["penalty"].any()) and batch["x"].requires_grad:
            (slope,) = torch.autograd.grad(z[:, 0].sum(), batch["x"], create_graph=True)
            total = 0.1 * total + slope.square().sum()
        return total, len(z)

    objective = lh.Objective(model, data, lh.batch_loss(loss, output=output))
    found = lh.analyze(objective, blocks="weight", full=False)
    exact = lh.analyze(objective, blocks="weight", full=False, path="exact")
    for name, one in found.blocks.items():
        other = exact.blocks[name]
        assert (np.abs(one.eigenvalues - other.eigenvalues) <= one.error_bounds + other.error_bounds + 1e-12).all()


def test_a_head_above_slopes_has_the_eigenvalue_of_its_explicit_hessian() -> None:
    """Not of our own products: differences of the loss's gradient, in closed form for the quadratic head."""
    objective = _objective(nn.ReLU(), by_grad)
    model, head = objective.model, objective.parameters["net.2.weight"]

    def total(weight: Tensor) -> Tensor:
        sums = [
            (torch.func.functional_call(model, {"net.2.weight": weight}, x) - y).square().sum()
            for x, y in objective.data
        ]
        return torch.stack(sums).sum() / (6 * 16 * 3)

    dense = torch.autograd.functional.hessian(total, head.detach().clone()).view(head.numel(), -1)
    found = lh.analyze(objective, blocks="weight", full=False).blocks["net.2.weight"]
    true = float(torch.linalg.eigvalsh(dense)[-1])
    assert abs(found.eigenvalues[0] - true) <= found.error_bounds[0] + 1e-12
