"""Square roots of the second derivative of a loss, item by item, and which items are the most curved."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.factors import output_hessian as module
from layerhess.curvature.factors.output_hessian import (
    curved,
    item_curvature,
    item_probe,
    item_weights,
    output_directions,
    same_by_item,
)

Y = torch.tensor([0, 2, 1, 0, 2])


def output(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return z.requires_grad_() * 1.0


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross entropy": lambda z: F.cross_entropy(z, Y, reduction="sum"),
    "weighted": lambda z: F.cross_entropy(z, Y, weight=torch.tensor([1.0, 5.0, 0.1]).to(z), reduction="sum"),
    "squares": lambda z: (z**2).sum(),
    "indefinite": lambda z: (z**3).sum(),
    "coupled": lambda z: (z.sum(1) ** 2).sum() - (z[:, 0] * z[:, 1]).sum(),
    "graded": lambda z: (z**2 * torch.tensor([1.0, 1e-6, 1e6]).to(z)).sum(),
    "one item": lambda z: (z[2] ** 2).sum(),
}


def dense(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """(N, K, K) of every item alone."""
    full = torch.autograd.functional.hessian(loss, z.detach().double())
    n, k = z.shape
    return torch.stack([full.reshape(n, k, n, k)[i, :, i] for i in range(n)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_roots_and_signs_make_the_second_derivative_of_every_item(name: str, dtype: torch.dtype) -> None:
    z, loss = output(5, 3, dtype=dtype), LOSSES[name]
    for again in (None, loss):
        found = output_directions(loss(z), z, again)
        assert found is not None and found.roots.dtype == found.signs.dtype == found.slope.dtype == dtype
        made = torch.einsum("nkq,nq,njq->nkj", found.roots.double(), found.signs.double(), found.roots.double())
        truth = dense(loss, z)
        relative, least = (1e-4, 1e-6) if dtype == torch.float32 else (1e-10, 1e-14)
        torch.testing.assert_close(made, truth, rtol=relative, atol=least * float(truth.abs().max()))
        slope = torch.autograd.grad(loss(z), z, retain_graph=True)[0]
        torch.testing.assert_close(found.slope, slope.detach(), rtol=1e-4, atol=1e-5)
    ranks = {"cross entropy": 2, "weighted": 2, "squares": 3, "indefinite": 3, "coupled": 3, "graded": 3, "one item": 3}
    assert found.roots.shape == (5, 3, ranks[name])


def test_losses_that_are_linear_or_do_not_depend_or_tie_items() -> None:
    z = output(4, 2)
    linear = output_directions((2.0 * z).sum(), z)
    assert linear is not None and not linear.roots.any() and linear.roots.shape == (4, 2, 1)
    assert linear.slope.tolist() == [[2.0, 2.0]] * 4
    assert output_directions((z.sum() ** 2), z) is None  # ties its items
    assert output_directions((z.sum(0) ** 2).sum(), z) is None
    other = torch.ones(1, requires_grad=True)
    assert output_directions((other**2).sum(), z) is None and output_directions(z.detach().sum(), z) is None
    wide = output(2, 33)
    assert output_directions((wide**2).sum(), wide) is None and output_directions((output(2, 32) ** 2).sum(), z) is None
    half = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True) * 1.0
    assert output_directions((half**2).sum(), half) is None
    fits = output(2, 32)
    assert output_directions((fits**2).sum(), fits) is not None
    at_zero = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True) * 1.0
    assert output_directions((at_zero.abs() ** 1.5).sum(), at_zero) is None  # infinite


def test_a_float32_output_is_judged_in_float64_where_the_loss_can() -> None:
    z = torch.tensor([[25.0, 0.0], [30.0, 0.0]], requires_grad=True) * 1.0
    loss = lambda z: F.cross_entropy(z, torch.tensor([0, 0]), reduction="sum")  # noqa: E731
    found = output_directions(loss(z), z, loss)
    assert found is not None
    p = torch.sigmoid(torch.tensor([25.0, 30.0]).double())
    expected = (p * (1 - p))[:, None, None] * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    made = torch.einsum("nkq,nq,njq->nkj", found.roots.double(), found.signs.double(), found.roots.double())
    torch.testing.assert_close(made, expected, rtol=5e-3, atol=0)  # 1 - p has its last digits here

    def minds(other: Tensor) -> Tensor:
        if other.dtype == torch.float64:
            raise TypeError
        return loss(other)

    assert output_directions(loss(z), z, minds) is not None


# -- items -------------------------------------------------------------------------------------------------------------


def test_probes_and_weights_of_items() -> None:
    like = torch.zeros(1, dtype=torch.float32)
    probe = item_probe(4, 3, like)
    assert probe.shape == (4, 3) and probe.dtype == torch.float32 and probe.equal(item_probe(4, 3, like))
    for n in (1, 5, 21, 50):
        weights = item_weights(n, like.double())
        powers = torch.log2(weights)
        assert weights.shape == (n,) and powers.equal(powers.round()) and float(powers.abs().max()) <= 10
        assert len(set(powers.tolist())) == min(n, 21)
    assert item_weights(50, like.double()).tolist() != sorted(item_weights(50, like.double()).tolist())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_rows_scale_item_by_item_to_their_precision(dtype: torch.dtype, limit: float) -> None:
    alone = torch.randn(6, 4, dtype=torch.float64)
    weights = item_weights(6, alone)[:, None]
    for off, same in ((0.0, True), (0.5, True), (2.0, False)):
        bent = alone * weights
        bent[3] += off * limit * bent[3].norm() * torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
        if dtype == torch.float64 or off != 0.5:
            assert same_by_item(bent.to(dtype), alone.to(dtype)) is same
    assert same_by_item(torch.zeros(2, 2, dtype=dtype), torch.zeros(2, 2, dtype=dtype))
    assert not same_by_item((alone[[1, 0]] * weights[:2]).to(dtype), alone[:2].to(dtype))


def test_curvature_of_items_is_that_of_one_vector_for_all() -> None:
    z = output(5, 3).detach()
    r = 2.0 * torch.frac(torch.arange(3, dtype=torch.float64) * (math.sqrt(5) - 1) / 2) - 1.0
    for loss in LOSSES.values():
        expected = (dense(loss, z) @ r).norm(dim=1)
        found = item_curvature(z, loss)
        assert found is not None and found.dtype == torch.float64
        torch.testing.assert_close(found, expected)
        rows = curved(z, loss)
        assert rows is not None
        torch.testing.assert_close(rows, dense(loss, z) @ r)


def test_where_curvature_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    square = lambda z: (z**2).sum()  # noqa: E731
    z = output(5, 3).detach()
    assert curved(torch.tensor(1.0), square) is None and curved(z[:0], square) is None
    assert curved(z, lambda z: z.sum()) is None and curved(z, lambda z: 1 / 0) is None
    assert curved(0 * z, lambda z: (z.abs() ** 1.5).sum()) is None
    one = z.clone()
    one[2, 1] = 0.0  # infinite there alone
    assert (
        curved(one, lambda z: (z.abs() ** 1.5).sum()) is None
        and curved(z, lambda z: (z.abs() ** 1.5).sum()) is not None
    )
    assert item_curvature([1.0], square) is None and item_curvature(z.bfloat16(), square) is None

    def single(z: Tensor) -> Tensor:
        if z.dtype == torch.float64:
            raise TypeError
        return (z**2).sum()

    found = item_curvature(z.float(), single)
    assert found is not None and found.dtype == torch.float64 and float(found.min()) > 0.0
    monkeypatch.setattr(module, "MOST_CURVED", 15)
    assert curved(z, square) is not None
    monkeypatch.setattr(module, "MOST_CURVED", 14)
    assert curved(z, square) is None
