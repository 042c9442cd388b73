"""Models at the edge: an output that is a parameter itself, and an analysis of which every block is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from references.dense import rows_of_hessian
from witness import untouched

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(6) % 3
CE = nn.CrossEntropyLoss()


class Table(nn.Module):
    """Its logits are its parameters."""

    def __init__(self, viewed: bool) -> None:
        super().__init__()
        values = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.logits, self.viewed = nn.Parameter(values), viewed

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.view(6, 3) if self.viewed else self.logits


@pytest.mark.parametrize("viewed", [False, True])
@pytest.mark.parametrize("path", ["auto", "exact"])
@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
def test_an_output_may_be_a_parameter(operator: str, path: str, viewed: bool) -> None:
    model = Table(viewed)
    truth = rows_of_hessian(lambda flat: CE(flat.view(6, 3), Y), model.logits.detach().reshape(-1))
    with untouched(model):
        analysis = lh.analyze(lh.Objective(model, (X, Y), CE), operator=operator, path=path, top=3, trace=True)
    assert analysis.full is not None and analysis.converged and analysis.full.trace is not None
    values = np.linalg.eigvalsh(truth)[::-1]
    assert (abs(analysis.full.eigenvalues[:3] - values[:3]) <= analysis.full.error_bounds[:3]).all()
    assert analysis.full.trace.low <= np.trace(truth) <= analysis.full.trace.high


class Stopped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h - 0.5 * h.mean(1, keepdim=True).detach()


@pytest.mark.parametrize("asked", [{"trace": True}, {"diagonal": True}, {"density": True}, {"coupling": True},
                                   {"trace": True, "sampling": True, "top": 0}], ids=str)  # fmt: skip
@pytest.mark.parametrize("full", [False, True])
def test_an_analysis_of_which_every_block_is_refused_is_a_result(
    asked: dict[str, Any], full: bool, tmp_path: Any
) -> None:
    def shifted(output: Tensor, target: Tensor) -> Tensor:
        return (output - target[:, None]).square().mean()

    objective = lh.Objective(Stopped(), (X, Y), shifted)
    analysis = lh.analyze(objective, full=full, skip_failed=True, out=tmp_path / "out", **asked)
    assert all(spectrum.status.startswith("refused") for spectrum in analysis.spectra())
    assert not analysis.converged and "refused" in str(analysis)
    assert (tmp_path / "out" / "report.html").exists()
