"""A block that counts as zero: every number of it carries its level as the bound."""

from __future__ import annotations

import math

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
