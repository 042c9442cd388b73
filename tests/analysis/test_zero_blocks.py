"""A block that counts as zero: every number of it carries its level as the bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh


class Attention(nn.Module):
    """The key's bias has no effect under the softmax; the gate's effect, 1e-7 of the others', is lost in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.gate = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        mixed = (self.q(x) @ self.k(x).mT / 2.0).softmax(-1) @ self.v(x)
        return mixed + 1e-4 * (self.gate**2).sum() * x


@pytest.fixture(scope="module")
def made() -> tuple[lh.Analysis, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    model, x, y = Attention(), torch.randn(12, 5, 4), torch.randn(12, 5, 4)
    found = lh.analyze(
        lh.Objective(model, (x, y), nn.MSELoss()), bottom=1, trace=True, diagonal=True, density=True, coupling=True
    )
    double = Attention().double()
    shapes = {name: p.shape for name, p in double.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: v.view(s) for (n, s), v in zip(shapes.items(), flat.split(sizes), strict=True)}
        return nn.functional.mse_loss(torch.func.functional_call(double, parts, (x.double(),)), y.double())

    flat = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    whole = torch.autograd.functional.hessian(loss, flat, vectorize=True).numpy()
    ends = np.cumsum(sizes)
    return found, {n: whole[e - k : e, e - k : e] for n, e, k in zip(shapes, ends, sizes, strict=True)}


def test_every_number_of_a_zero_block_has_its_level_as_bound(
    made: tuple[lh.Analysis, dict[str, np.ndarray]],
) -> None:
    found, true = made
    zeros = [s for s in found.blocks.values() if s.status.startswith("zero")]
    assert "k.bias" in [s.name for s in zeros]
    assert found.coupling is not None and found.full is not None and found.full.trace is not None
    for s in zeros:
        bound, n, block = float(s.error_bounds[0]), s.numel, true[s.name]
        assert bound > 0.0 and np.abs(np.linalg.eigvalsh(block)).max() <= bound
        assert s.trace is not None and s.diagonal is not None and s.density is not None
        assert (s.trace.value, s.trace.rounding) == (0.0, pytest.approx(n * bound))
        assert s.trace.low == -s.trace.rounding <= np.trace(block) <= s.trace.high == s.trace.rounding
        assert s.diagonal.rounding == bound >= np.abs(np.diag(block)).max()
        assert (s.density.mean_error, s.density.second_error) == (bound, bound**2)
        figures = s.derived
        assert (figures.trace.error, figures.mean_curvature.error) == (s.trace.rounding, pytest.approx(bound))
        assert figures.trace.kind == figures.frobenius_squared.kind == "bound"
        assert figures.frobenius_squared.error == pytest.approx(n * bound**2) and figures.damping.error == bound
        place = found.coupling.blocks.index(s.name)
        own, error = found.coupling.value[place, place], found.coupling.standard_error[place, place]
        assert error >= math.sqrt(n) * bound and abs(own - np.linalg.norm(block)) <= error
    extra = sum(s.trace.rounding for s in zeros if s.trace is not None)
    whole = sum(float(np.trace(block)) for block in true.values())
    assert found.full.trace.rounding > extra and abs(found.full.trace.value - whole) <= found.full.trace.rounding + (
        6.0 * found.full.trace.standard_error
    )
    assert found.full.diagonal is not None and found.full.diagonal.rounding >= max(s.rounding for s in zeros)


def test_a_block_that_nothing_depends_on_is_exactly_zero() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0.0 * self.unused.sum().detach()

    torch.manual_seed(0)
    found = lh.analyze(
        lh.Objective(Unused(), (torch.randn(6, 3), torch.randn(6, 2)), nn.MSELoss()), trace=True, diagonal=True
    )
    trace, diagonal = found["unused"].trace, found["unused"].diagonal
    assert trace is not None and diagonal is not None and trace.rounding == diagonal.rounding == 0.0


def linear(outputs: int) -> nn.Module:
    return nn.Linear(4, outputs)


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
        model[0].bias.fill_(-1.0)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "loss", "operator"),
    [(lambda: linear(3), nn.L1Loss(), "hessian"), (lambda: linear(12), nn.L1Loss(), "hessian"),
     (lambda: linear(12), lambda o, t: (o * t).mean(), "hessian"), (dead, nn.L1Loss(), "hessian"),
     (lambda: nn.Sequential(linear(6), nn.Tanh(), nn.Linear(6, 4)), nn.L1Loss(), "gauss_newton")],
    ids=["small", "large", "linear in the output", "dead units", "gauss_newton"],
)  # fmt: skip
def test_a_matrix_that_is_zero_as_a_whole_is_an_answer(make: Any, loss: Any, operator: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = make().to(dtype), torch.randn(10, 4, dtype=dtype)
    objective = lh.Objective(model, (x, torch.randn_like(model(x))), loss)
    found = lh.analyze(objective, operator=operator, top=2, bottom=1, trace=True)
    assert found.converged and found.full is not None and found.full.trace is not None
    for s in found.spectra():
        assert s.status.startswith(("zero", "complete")) and not s.eigenvalues.any() and s.error_bounds.max() <= 1e-150
        assert np.abs(s.interval).max() <= 1e-150
    assert found.full.trace.value == 0.0 and found.full.trace.high <= 1e-150
    assert (
        ("no limit" in str(found)) is (operator == "hessian")
        and "xcluded: " not in str(found)
        and "unknown" not in str(found)
    )


def test_a_model_without_curvature_on_the_sample_is_looked_at_on_all_data() -> None:
    x = -torch.rand(64, 5, dtype=torch.float64)
    x[5] *= -1.0  # evenly spread examples miss it
    model = nn.Linear(5, 8, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.rand(8, 5))
    found = lh.analyze(lh.Objective(model, (x, x), lambda o, t: (o.relu() ** 2).sum(1).mean()))
    true = 2.0 / 64 * float(x[5].square().sum())
    for s in found.spectra():
        assert s.solved and abs(s.eigenvalues[0] - true) <= s.error_bounds[0] <= 1e-3 * true
