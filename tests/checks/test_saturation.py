"""Losses on probabilities: right with a small bound, or refused by name where torch no longer differentiates them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.saturation import Saturation

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HALF = torch.rand(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2.0
HARD = (HALF > 0.25).double()
CLASSES = torch.arange(12) % 4


def network(last: nn.Module, scale: float, shift: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), last).double()
    with torch.no_grad():
        model[2].weight.mul_(scale)  # type: ignore[operator]
        model[2].bias.add_(shift)  # type: ignore[operator]
    return model


def top(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> np.ndarray:
    """The eigenvalues of the whole Hessian in float64, from the largest down."""
    model = copy.deepcopy(model).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        named = {name: v.view(s) for (name, s), v in zip(shapes.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, named, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return np.linalg.eigvalsh(torch.autograd.functional.hessian(of, flat, vectorize=True).numpy())[::-1]


def entropy(p: Tensor, y: Tensor) -> Tensor:
    return -(y * p.log() + (1.0 - y) * torch.log1p(-p)).mean()


def nll(p: Tensor, y: Tensor) -> Tensor:
    return -p.log().gather(1, y[:, None]).mean()


def divergence(p: Tensor, y: Tensor) -> Tensor:
    return (y * (y / p).log()).sum(dim=1).mean()


def poisson(rate: Tensor, y: Tensor) -> Tensor:
    return (rate - y * (rate + 1e-8).log()).mean()


def gaussian(variance: Tensor, y: Tensor) -> Tensor:
    return (variance.log() + y**2 / variance).mean()


LOSSES: dict[str, tuple[nn.Module, Any, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "bce": (nn.Sigmoid(), nn.BCELoss(), entropy, HARD),
    "bce after softmax": (nn.Softmax(dim=1), F.binary_cross_entropy, entropy, HALF),
    "nll of probabilities": (nn.Softmax(dim=1), nll, nll, CLASSES),
    "kl": (nn.Softmax(dim=1), divergence, divergence, (HALF + 0.1) / (HALF + 0.1).sum(dim=1, keepdim=True)),
    "poisson without log": (nn.Softplus(), nn.PoissonNLLLoss(log_input=False), poisson, HARD * 3.0),
    "gaussian with a variance": (nn.Softplus(), gaussian, gaussian, HALF),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_on_a_part_of_the_line_has_a_small_bound_that_holds(name: str, dtype: torch.dtype) -> None:
    last, loss, written, target = LOSSES[name]
    for scale in (1.0, 10.0):
        model, x = network(last, scale).to(dtype), X.to(dtype)
        y = target.to(dtype) if target.is_floating_point() else target
        found = lh.analyze(lh.Objective(model, (x, y), loss), tol=1e-4)
        assert found.full is not None
        value, bound = float(found.full.eigenvalues[0]), float(found.full.error_bounds[0])
        true = top(model, written, x.double(), y.double() if y.is_floating_point() else y)
        assert np.abs(true - value).min() <= bound <= 5e-3 * abs(value), (scale, value, bound)


def refusal(model: nn.Module, x: Tensor, y: Tensor, loss: Any) -> str:
    with pytest.raises(lh.CheckError) as caught:
        lh.analyze(lh.Objective(model, (x, y), loss))
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_outputs_are_refused_by_name_in_any_batch_and_however_the_loss_is_called(dtype: torch.dtype) -> None:
    model, x, y = network(nn.Sigmoid(), 1.0).to(dtype), X.to(dtype), HALF.to(dtype)
    x[-1] = 1e4 * x[-1]
    with torch.no_grad():
        model[0].weight.mul_(0.1)  # type: ignore[operator]
        model[2].weight.mul_(40.0)  # type: ignore[operator]
    by_hand = lh.batch_loss(lambda m, batch: (F.binary_cross_entropy(m(batch[0]), batch[1], reduction="sum"), 8))
    for data, loss in (((x, y), nn.BCELoss()), ([(x[:6], y[:6]), (x[6:], y[6:])], by_hand)):
        with pytest.raises(lh.CheckError) as caught:
            lh.analyze(lh.Objective(model, data, loss))
        said = str(caught.value)
        assert "BCELoss" in said and "BCEWithLogitsLoss" in said and "1e-12" in said and len(said) <= 400
    said = refusal(network(nn.Sigmoid(), 1.0, -25.0).to(dtype), X.to(dtype), y, nn.BCELoss())
    assert "BCELoss" in said and "BCEWithLogitsLoss" in said and "cancel" in said and len(said) <= 400


def test_outputs_that_are_sure_and_right_are_no_reason_to_refuse() -> None:
    model = network(nn.Sigmoid(), 40.0).float()
    y = (model(X.float()) > 0.5).float()
    with torch.no_grad():
        assert bool((model(X.float()) == 1.0).any())
    found = lh.analyze(lh.Objective(model, (X.float(), y), nn.BCELoss()))
    logits = lambda z, t: F.binary_cross_entropy_with_logits(z, t)  # noqa: E731
    true = top(model[:3], logits, X.float().double(), y.double())
    assert found.full is not None and found.full.solved
    assert np.abs(true - found.full.eigenvalues[0]).min() <= found.full.error_bounds[0] <= 0.05 * true[0]


def test_what_saturation_falsifies_is_added_up_over_calls() -> None:
    found = Saturation()
    p, y = torch.tensor([0.5, 1e-13, 1.0], dtype=torch.float64), torch.tensor([1.0, 0.25, 1.0]).double()
    with found.watching():
        nn.BCELoss()(p, y)
        F.binary_cross_entropy(input=p[:1], target=y[:1], weight=torch.tensor([2.0]))
    nn.BCELoss()(p, y)
    assert (found.outputs, found.clamped) == (4, 2)
    assert found.wrong == pytest.approx(0.25) and found.right == pytest.approx(0.75)
    assert found.slope == pytest.approx(1.5)
    Saturation(wrong=9e-8, right=1.0, slope=1e7, outputs=1).refuse()
    for bad in (Saturation(wrong=2e-7, right=1.0, outputs=1), Saturation(right=1e-9, slope=1.0, outputs=1)):
        with pytest.raises(lh.CheckError, match="BCELoss"):
            bad.refuse()
