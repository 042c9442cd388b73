"""Batches cut to a budget, or left whole where they cannot be; pieces of unequal kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh


class _OfTransforms(nn.Module):
    """Runs torch.func inside, which does not let anybody watch what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda row: self.layer(row).logsumexp(-1)))(x)
        return self.layer(x) + slopes[:, :3]


def test_a_model_of_transforms_takes_a_budget() -> None:
    torch.manual_seed(0)
    objective = lh.Objective(_OfTransforms(), (torch.randn(50, 8), torch.randint(0, 3, (50,))), nn.CrossEntropyLoss())
    free, held = lh.analyze(objective), lh.analyze(objective, memory="1GB")
    assert free.converged and held.converged
    np.testing.assert_allclose(held.full.eigenvalues, free.full.eigenvalues, rtol=2e-3)


@pytest.mark.parametrize("other", ["e", torch.tensor(0.0), torch.zeros(7)], ids=["a word", "0-d", "another length"])
def test_batches_of_which_one_cannot_be_cut_are_left_whole(other: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    x, y = torch.randn(20000, 8), torch.randint(0, 3, (20000,))
    loss = lh.batch_loss(lambda m, b: (F.cross_entropy(m(b["x"]), b["y"], reduction="sum"), len(b["y"])))
    data = [{"x": x, "y": y}, {"x": x[:100], "y": y[:100], "id": other}]
    found = lh.analyze(lh.Objective(model, data, loss), tol=1e-2, path="exact", full=False, memory="10MB")
    assert found.converged and not any("cut into pieces" in note for note in found.notes)


def test_rounding_is_measured_where_batches_have_images_of_other_sizes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[2].weight.mul_(12.0)

    def batch(side: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(12, 2, side, side) * 4.0
        x[0] *= 0.05
        return x, model(x).argmax(1)

    found = lh.analyze(lh.Objective(model, [batch(5), batch(6), batch(7)], nn.CrossEntropyLoss()), path="exact")
    assert found.full.rounding_source == "measured" and not any("another precision" in note for note in found.notes)


class _SinglePrecisionOnly(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        assert output.dtype == torch.float32
        return F.cross_entropy(output, target)


def test_a_criterion_that_refuses_float64_in_its_own_way_is_taken_in_float32() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(40, 3), torch.randint(0, 2, (40,))) for _ in range(2)]
    model = nn.Linear(3, 2)
    found = lh.analyze(lh.Objective(model, data, _SinglePrecisionOnly()))
    same = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()))
    assert found.converged and same.converged
    np.testing.assert_allclose(found.full.eigenvalues, same.full.eigenvalues, rtol=2e-3)
