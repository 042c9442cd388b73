"""Couplings within an analysis: exact where the spectrum is, and errors that hold otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess.analysis.probing import columns
from layerhess.analysis.probing.block_samples import Known
from layerhess.linalg.stochastic.deflation import Deflation
from references import dense


def totals(call: Any, batch: Any) -> Any:
    x, y = batch
    return nn.functional.cross_entropy(call(x), y, reduction="sum"), torch.tensor(float(len(y)))


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9, bias=False), nn.Tanh(), nn.Linear(9, 9, bias=False), nn.Tanh(),
                          nn.Linear(9, 9, bias=False)).double()  # fmt: skip
    data = [(2.0 * torch.randn(30, 8).double(), torch.randint(9, (30,)))]
    return model, data, dense.reference_for(model, data, totals)


@pytest.mark.parametrize("asked", [{}, {"density": lh.Density(probes=4, steps=8)}, {"method": "power"}],
                         ids=["alone", "with densities", "power"])  # fmt: skip
@pytest.mark.parametrize("path", ["exact", "auto"])
def test_errors_hold_and_what_is_known_has_none(network: Any, asked: dict[str, Any], path: str) -> None:
    model, data, truth = network
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    for seed in range(3):
        analysis = lh.analyze(objective, full=False, seed=seed, path=path, tol=0.05, coupling=True, **asked)
        found = analysis.coupling
        assert found is not None and found.probes == 8
        names = list(found.blocks)
        for i, b in enumerate(names):
            for j, c in enumerate(names):
                rows = np.ix_(truth.index([b]), truth.index([c]))
                true = np.linalg.norm(truth.matrix[rows])
                off, error = abs(found.value[i, j] - true), found.standard_error[i, j]
                assert off <= 4.0 * error + 1e-9 * true
                # With the directions that the solver knows; without any they would be 0.2 to 0.5.
                assert asked or error <= 0.15 * true
            if analysis.blocks[b].complete and "density" not in asked:
                assert found.standard_error[i, i] <= 1e-12 * found.value[i, i]


def test_last_digits_choose_no_directions() -> None:
    turn = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    values = torch.cat([torch.tensor([3.0, -3.0, 2.0, 2.0, 2.0, 1.0]), torch.linspace(0.9, 0.5, 20), torch.zeros(14)])
    matrix = turn @ torch.diag(values.double()) @ turn.T
    block = SimpleNamespace(numel=40)
    found = []
    for seed in range(4):  # 14 zeros do not all belong to the first 32: none of them is kept
        noise = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 1e-15
        none = Deflation.none(40, torch.device("cpu"))
        known = Known(matrix=matrix + noise + noise.T)
        member: Any = SimpleNamespace(name="b", block=block, device=none.q.device, deflation=none, known=known)
        found.append(columns._directions(member, 0))
        torch.testing.assert_close(found[-1].w, found[-1].q @ matrix, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(found[-1].q, found[0].q, rtol=0.0, atol=1e-10)
    assert found[0].size == 26
