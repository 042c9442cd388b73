"""The curvature of a loss in its output: its roots with their signs, and its size for every item."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import layerhess as lh
from layerhess.curvature.counters import Counters
from layerhess.curvature.factors.factor_graph import FactorGraph
from layerhess.curvature.factors.output_hessian import item_curvature, output_directions


def test_roots_of_the_output_hessian_of_cross_entropy() -> None:
    """S = diag(p) - p p' per item, of rank C - 1."""
    torch.manual_seed(0)
    z = torch.randn(7, 5).double().requires_grad_()
    inner = z * 1.0
    loss = F.cross_entropy(inner, torch.randint(5, (7,)), reduction="sum")
    directions = output_directions(loss, inner)
    assert directions is not None
    roots, signs, slope = directions.roots, directions.signs, directions.slope
    p = torch.softmax(z.detach(), dim=1)
    expected = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    assert roots.shape == (7, 5, 4) and bool((signs >= 0).all())
    assert torch.allclose(slope, torch.autograd.grad(loss, inner)[0], atol=1e-15)
    assert torch.allclose((roots * signs.unsqueeze(1)) @ roots.mT, expected, atol=1e-14)


def test_roots_of_a_loss_that_is_not_convex_keep_their_signs() -> None:
    inner = torch.tensor([[0.3, -1.2], [2.0, 0.1]]).double().requires_grad_() * 1.0
    directions = output_directions(torch.sin(inner).sum() + (inner[:, 0] * inner[:, 1]).sum(), inner)
    assert directions is not None
    roots, signs = directions.roots, directions.signs
    z = inner.detach()
    expected = torch.diag_embed(-torch.sin(z)) + torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    assert torch.allclose((roots * signs.unsqueeze(1)) @ roots.mT, expected, atol=1e-14)
    assert bool((signs < 0).any()) and bool((signs > 0).any())


def test_outputs_with_many_numbers_an_item_have_no_factors() -> None:
    model = nn.Sequential(nn.Linear(3, 40))
    objective = lh.Objective(model, (torch.randn(5, 3), torch.randint(40, (5,))), nn.CrossEntropyLoss())
    with objective.session():
        graph = FactorGraph(objective, next(iter(objective.batches())), {"w": ["0.weight"]}, Counters())
    assert not graph.factored and not graph.linear


def test_a_very_sure_network_has_no_direction_more_in_float32() -> None:
    """1 - p of the sure class has no digits in float32; in float64 S has rank C - 1, and is the one of mathematics."""
    logits = torch.tensor([[12.0, 0.0, -1.0, 2.0], [-3.0, 14.0, 1.0, 0.0], [0.3, 0.1, 0.2, 0.0]])
    output = logits.clone().requires_grad_() + 0.0
    target = torch.tensor([0, 1, 2])
    criterion = nn.CrossEntropyLoss(reduction="sum")
    directions = output_directions(criterion(output, target), output, lambda z: criterion(z, target))
    assert directions is not None and directions.roots.shape == (3, 4, 3) and directions.roots.dtype == torch.float32
    p = logits.double().softmax(dim=1)
    exact = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    roots = directions.roots.double()
    made = roots @ torch.diag_embed(directions.signs.double()) @ roots.mT
    assert ((made - exact).abs() <= 1e-6 * exact.abs().amax(dim=(1, 2), keepdim=True)).all()
    weighted = nn.CrossEntropyLoss(weight=torch.ones(4), reduction="sum")  # float32 weights: no float64 loss of it
    there = output_directions(weighted(output, target), output, lambda z: weighted(z, target))
    assert there is not None and torch.isfinite(there.roots).all()


def test_a_criterion_that_minds_float64_outputs_keeps_its_factors() -> None:
    """HuberLoss takes a float64 output with a float32 target, and only its second derivative does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    data = (torch.randn(20, 4), torch.randn(20, 2))
    found = lh.analyze(lh.Objective(model, data, nn.HuberLoss()), full=False, path="factors")
    exact = lh.analyze(lh.Objective(model, data, nn.HuberLoss()), full=False, path="exact")
    for one, other in zip(found.blocks.values(), exact.blocks.values(), strict=True):
        assert abs(one.eigenvalues[0] - other.eigenvalues[0]) <= one.error_bounds[0] + other.error_bounds[0]


def test_output_curvature_against_closed_forms() -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 0.0], [60.0, 0.0]])
    y = torch.zeros(3, dtype=torch.long)
    found = item_curvature(z, functools.partial(F.cross_entropy, target=y, reduction="sum"))
    assert found is not None
    p = z[:, 0].double().sigmoid() * (-z[:, 0].double()).sigmoid()
    np.testing.assert_allclose((found / found[0])[:2], (p / p[0])[:2], rtol=1e-12)
    assert found[2] < 1e-15
    exponential = item_curvature(torch.tensor([[0.0], [1.0], [2.0]]), lambda z: z.exp().sum())
    np.testing.assert_allclose(exponential, np.exp([0.0, 1.0, 2.0]), rtol=1e-12)
    assert item_curvature(z, lambda z: z.sum()) is None  # no second derivative
    assert item_curvature(z.long(), lambda z: z.sum()) is None


def test_binary_cross_entropy_of_probabilities_has_its_own_second_derivative() -> None:
    """y / p^2 + (1 - y) / (1 - p)^2; torch's double backward adds 1e-12 to p and to 1 - p."""
    p = torch.tensor([[1e-3], [0.4], [0.999]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0], [0.3], [0.0]], dtype=torch.float64)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy(z, y, reduction="sum")

    z = p * 1.0
    found = output_directions(loss(z), z, loss)
    assert found is not None
    curved = (found.roots * found.signs[:, None] * found.roots).sum((1, 2)).detach()
    exact = (y / p**2 + (1 - y) / (1 - p) ** 2).detach().flatten()
    torch.testing.assert_close(curved, exact, rtol=1e-14, atol=0.0)
