"""Binary cross entropy of probabilities: torch's values and refusals, and the derivatives in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.curvature.double_backward.mode import Rewritten

P = torch.tensor([1e-30, 1e-11, 1e-6, 0.3, 0.999, 1.0 - 2.0**-40], dtype=torch.float64)
Y = torch.tensor([0.0, 0.9, 0.3, 1.0, 0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, torch.arange(1.0, 7.0).double()])
def test_its_values_are_torchs_and_its_derivatives_those_of_the_logarithms(
    reduction: str, weight: Tensor | None
) -> None:
    p = P.clone().requires_grad_()
    with Rewritten():
        value = nn.BCELoss(weight=weight, reduction=reduction)(p, Y)
    torch.testing.assert_close(value, F.binary_cross_entropy(P, Y, weight, reduction=reduction), rtol=1e-14, atol=0)
    scale = (torch.ones(6).double() if weight is None else weight) / (6.0 if reduction == "mean" else 1.0)
    (first,) = torch.autograd.grad(value.sum(), p, create_graph=True)
    torch.testing.assert_close(first, scale * ((1 - Y) / (1 - P) - Y / P), rtol=1e-14, atol=0)
    (second,) = torch.autograd.grad(first.sum(), p, create_graph=True)
    torch.testing.assert_close(second, scale * ((1 - Y) / (1 - P) ** 2 + Y / P**2), rtol=1e-14, atol=0)
    (third,) = torch.autograd.grad(second.sum(), p)
    torch.testing.assert_close(third, scale * 2.0 * ((1 - Y) / (1 - P) ** 3 - Y / P**3), rtol=1e-14, atol=0)


def test_logarithms_are_clamped_as_torchs_are_and_their_derivatives_are_finite() -> None:
    p = torch.tensor([0.0, 0.0, 1.0, 1.0]).requires_grad_()
    y = torch.tensor([0.0, 1.0, 0.0, 1.0])
    with Rewritten():
        losses = F.binary_cross_entropy(p, y, reduction="none")
    assert losses.tolist() == F.binary_cross_entropy(p, y, reduction="none").tolist() == [0.0, 100.0, 100.0, 0.0]
    (first,) = torch.autograd.grad(losses.sum(), p, create_graph=True)
    assert first.tolist() == [1.0, 0.0, 0.0, -1.0]
    assert torch.autograd.grad(first.sum(), p)[0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_what_torch_refuses_is_refused() -> None:
    with Rewritten():
        for p, y in ((P + 1.0, Y), (P[:3], Y)):
            with pytest.raises((RuntimeError, ValueError)):
                F.binary_cross_entropy(p.requires_grad_(), y)
        assert not F.binary_cross_entropy(P, Y, size_average=False).ndim  # type: ignore[call-arg]


# -- with logits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, torch.arange(1.0, 7.0).double()])
@pytest.mark.parametrize("pos_weight", [None, torch.tensor([1.5]).double()])
def test_with_logits_it_is_torchs(reduction: str, weight: Tensor | None, pos_weight: Tensor | None) -> None:
    def orders() -> list[Tensor]:
        z = torch.linspace(-3.0, 2.0, 6).double().requires_grad_()
        value = F.binary_cross_entropy_with_logits(z, Y, weight, reduction=reduction, pos_weight=pos_weight)
        (first,) = torch.autograd.grad((value * value).sum(), z, create_graph=True)
        return [value, first, *torch.autograd.grad(first.cos().sum(), z)]

    theirs = orders()
    with Rewritten():
        ours = orders()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("y", [0.0, 0.25, 1.0])
def test_with_logits_saturated_derivatives_have_all_their_digits(y: float) -> None:
    z = torch.tensor([-300.0, -40.0, -20.0, 0.0, 20.0, 40.0, 300.0]).double().requires_grad_()
    with Rewritten():
        loss = F.binary_cross_entropy_with_logits(z, torch.full_like(z, y), reduction="sum")
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    e = torch.exp(-z.detach().abs())
    rising, falling = torch.where(z > 0, 1.0, e) / (1 + e), torch.where(z > 0, e, 1.0) / (1 + e)
    torch.testing.assert_close(first, (1 - y) * rising - y * falling, rtol=1e-14, atol=0)
    torch.testing.assert_close(second, e / (1 + e) ** 2, rtol=1e-14, atol=0)


def test_with_logits_what_torch_refuses_is_refused_in_its_words() -> None:
    said = []
    for context in (torch.enable_grad(), Rewritten()):
        with context, pytest.raises(ValueError) as caught:
            F.binary_cross_entropy_with_logits(P, Y[:3])
        said.append(str(caught.value))
    assert said[0] == said[1]
