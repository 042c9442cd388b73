"""PINNs, forces and gradient penalties: eigenvalues and estimates against differences of first-order gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from witness import refused

STEP = 1e-6


class PlainLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        c = x - x.mean(-1, keepdim=True)
        return c / (c.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


class PlainBatchNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        c = x - x.mean(0)
        return c / (c.square().mean(0) + self.eps).sqrt() * self.weight + self.bias


def pinn(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    t = batch[0].requires_grad_(True)  # the caller's own tensor, as many write it
    u = model(t)
    (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
    return (ddu.sum(1) + u[:, 0]).square().sum(), len(t)


def by_transform(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    u, du = torch.func.jvp(model, (batch[0],), (torch.ones_like(batch[0]),))
    return (du + u).square().sum(), len(batch[0])


def penalty(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x = batch[0].detach().requires_grad_(True)
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (g.norm(dim=1) - 1.0).square().sum() - model(batch[1]).sum(), len(x)


def _network(norm: nn.Module | None, act: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(2, 4), *([norm] if norm else []), act, nn.Linear(4, 4), copy.deepcopy(act), nn.Linear(4, 1)]
    return nn.Sequential(*parts).double()


def _dense(model: nn.Module, total: Callable[[nn.Module], Tensor]) -> np.ndarray[Any, Any]:
    """Central differences of first-order gradients."""
    parameters, rows = list(model.parameters()), []
    for parameter in parameters:
        for i in range(parameter.numel()):
            sides = []
            for step in (STEP, -STEP):
                with torch.no_grad():
                    parameter.view(-1)[i] += step
                found = torch.autograd.grad(total(model), parameters, allow_unused=True)
                pairs = zip(found, parameters, strict=True)
                sides.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
                with torch.no_grad():
                    parameter.view(-1)[i] -= step
            rows.append((sides[0] - sides[1]).detach() / (2.0 * STEP))
    matrix = torch.stack(rows).numpy()
    return (matrix + matrix.T) / 2.0


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 2, generator=generator).double(), torch.randn(9, 2, generator=generator).double()


CASES: dict[str, tuple[Any, nn.Module | None, nn.Module | None, nn.Module]] = {
    "PINN": (pinn, None, None, nn.Tanh()),
    "PINN, LayerNorm": (pinn, nn.LayerNorm(4), PlainLayerNorm(4), nn.SiLU()),
    "PINN, GroupNorm": (pinn, nn.GroupNorm(1, 4), PlainLayerNorm(4), nn.GELU()),
    "transform, LayerNorm": (by_transform, nn.LayerNorm(4), PlainLayerNorm(4), nn.Tanh()),
    "penalty, LayerNorm": (penalty, nn.LayerNorm(4), PlainLayerNorm(4), nn.LeakyReLU()),
    "penalty, BatchNorm": (penalty, nn.BatchNorm1d(4), PlainBatchNorm(4), nn.SiLU()),
}


@pytest.mark.parametrize(("loss", "norm", "plain", "act"), CASES.values(), ids=list(CASES))
def test_curvature_is_that_of_the_loss_as_it_is_written(loss: Any, norm: Any, plain: Any, act: nn.Module) -> None:
    x, z = _data()
    tied = isinstance(norm, nn.BatchNorm1d)
    data = [(x.clone(), z)] if tied else [(x[:6].clone(), z[:6]), (x[6:].clone(), z[6:])]
    reference = _dense(_network(plain, act), lambda m: loss(m, (x.clone(), z))[0] / len(x))
    model = _network(norm, act)
    objective = lh.Objective(model, data, lh.batch_loss(loss), batch_size=None if tied else 4)
    found = lh.analyze(objective, bottom=1, trace=not tied, diagonal=not tied)
    scale, start = np.linalg.norm(reference, 2), 0
    for name, parameter in model.named_parameters():
        own = reference[start : start + parameter.numel(), start : start + parameter.numel()]
        start += parameter.numel()
        block, true = found.blocks[name], np.linalg.eigvalsh(own)
        assert abs(block.eigenvalues[0] - true[-1]) <= block.error_bounds[0] + 1e-6 * scale
        assert abs(block.eigenvalues[-1] - true[0]) <= block.error_bounds[-1] + 1e-6 * scale
        if not tied:
            off = abs(block.trace.value - np.trace(own))
            assert off <= 5.0 * block.trace.standard_error + 1e-6 * scale
    assert found.full is not None
    assert (
        abs(found.full.eigenvalues[0] - np.linalg.eigvalsh(reference)[-1]) <= found.full.error_bounds[0] + 1e-6 * scale
    )


def third(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x = batch[0].detach().requires_grad_(True)
    u = model(x)
    for _ in range(3):
        (u,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return u.square().sum(), len(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_whose_own_value_torch_gets_wrong_is_refused_by_the_norm(dtype: torch.dtype) -> None:
    """The third derivative of the network is in the loss itself; with plain operations it is right."""
    x, z = (t.to(dtype) for t in _data())
    with refused(None, "gives", "1 (LayerNorm)", "plain operations"):
        lh.analyze(lh.Objective(_network(nn.LayerNorm(4), nn.Tanh()).to(dtype), [(x, z)], lh.batch_loss(third)))
    if dtype == torch.float64:
        model = _network(PlainLayerNorm(4), nn.Tanh())
        reference = _dense(copy.deepcopy(model), lambda m: third(m, (x, z))[0] / len(x))
        found = lh.analyze(lh.Objective(model, [(x, z)], lh.batch_loss(third))).full
        assert found is not None
        off = abs(found.eigenvalues[0] - np.linalg.eigvalsh(reference)[-1])
        assert off <= found.error_bounds[0] + 1e-6 * np.linalg.norm(reference, 2)


@pytest.mark.parametrize("beside", [True, False], ids=["beside others", "alone"])
def test_forces_that_almost_match_are_not_taken_for_wrong_ones(beside: bool) -> None:
    """Their loss is a difference of near numbers, and another form of a norm moves it by more than rounding does."""
    x, _ = _data()
    model = _network(nn.LayerNorm(4), nn.Tanh()).float()

    def forces(model: nn.Module, inputs: Tensor) -> Tensor:
        inputs = inputs.detach().requires_grad_(True)
        return torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)[0]

    exact = forces(model, x.float()).detach()
    near = exact + 1e-5 * exact.abs().max() * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    data = [(x.float(), near), (x.float(), torch.zeros_like(near))][: 1 + beside]

    def matched(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return (forces(model, batch[0]) - batch[1]).square().sum(), len(batch[0])

    def total(model: nn.Module) -> Tensor:
        return sum(matched(model, (a.double(), b.double()))[0] for a, b in data) / (len(data) * len(x))

    found = lh.analyze(lh.Objective(model, data, lh.batch_loss(matched))).full
    plain = _network(PlainLayerNorm(4), nn.Tanh()).float().double()
    reference = _dense(plain, total)
    assert found is not None
    off = abs(found.eigenvalues[0] - np.linalg.eigvalsh(reference)[-1])
    assert off <= found.error_bounds[0] + 1e-6 * np.linalg.norm(reference, 2)


def test_the_model_and_its_data_keep_no_graph() -> None:
    x, z = _data()
    model = _network(None, nn.Tanh())
    before = [p.detach().clone() for p in model.parameters()]
    lh.analyze(lh.Objective(model, [(x, z)], lh.batch_loss(penalty)), full=False)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))
    assert x.grad_fn is None and not x.requires_grad
