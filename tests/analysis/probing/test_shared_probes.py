"""Probes that densities, couplings and traces share, deflated by the densities' own Krylov spaces: still right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import layerhess as lh
from layerhess.analysis.probing.density_start import widened
from layerhess.linalg.stochastic.deflation import Deflation
from references import dense
from references.probed import FAMILIES

ALL: dict[str, Any] = {"trace": True, "diagonal": True, "density": lh.Density(probes=4, steps=8), "coupling": True}


def trained() -> tuple[nn.Module, list[Any]]:
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:200] / 16.0), torch.tensor(digits[:200])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, [(x, y)]


def totals(call: Any, batch: Any) -> Any:
    x, y = batch
    return nn.functional.cross_entropy(call(x), y, reduction="sum"), torch.tensor(float(len(y)))


@pytest.mark.parametrize("seeds", [15, pytest.param(30, marks=pytest.mark.slow)])
def test_intervals_cover_and_nothing_is_biased_where_everything_is_shared(seeds: int) -> None:
    model, data = trained()
    truth = dense.reference_for(model, data, totals)
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    covered: list[bool] = []
    scores: dict[str, list[float]] = {"trace": [], "full trace": [], "coupling": [], "mean": []}
    entries: list[float] = []
    for seed in range(seeds):
        analysis = lh.analyze(objective, seed=seed, path="exact", **ALL)
        for spectrum in analysis.spectra():
            matrix = truth.block(list(spectrum.parameters))
            trace, diagonal, density = spectrum.trace, spectrum.diagonal, spectrum.density
            assert trace is not None and diagonal is not None and density is not None
            if trace.method == "exact":
                continue
            covered.append(trace.low <= np.trace(matrix) <= trace.high)
            kind = "full trace" if spectrum is analysis.full else "trace"
            scores[kind].append((trace.value - np.trace(matrix)) / trace.standard_error)
            scores["mean"].append((density.mean - np.trace(matrix) / len(matrix)) / density.mean_error)
            off = torch.cat([part.reshape(-1) for part in diagonal.value.values()]).numpy() - np.diag(matrix)
            error = torch.cat([part.reshape(-1) for part in diagonal.standard_error.values()]).numpy()
            entries.append(float(np.linalg.norm(off) / np.linalg.norm(error)))
        coupling = analysis.coupling
        assert coupling is not None
        names = [list(s.parameters) for s in analysis.blocks.values()]
        places = [truth.index(members) for members in names]
        table = np.array([[np.linalg.norm(truth.matrix[np.ix_(b, c)]) ** 2 for c in places] for b in places])
        share = 1.0 - np.trace(table) / table.sum()
        scores["coupling"].append((coupling.off_diagonal_share - share) / coupling.share_error)
    assert len(covered) >= 3 * seeds and np.mean(covered) >= 0.9, np.mean(covered)
    for kind, values in scores.items():
        assert abs(np.median(values)) <= 4 * 1.3 / np.sqrt(seeds), (kind, np.median(values))
        assert np.median(np.abs(values)) <= 1.2, (kind, np.median(np.abs(values)))
    assert 0.8 <= np.median(entries) <= 1.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_widened_deflation_is_one_of_the_span_of_both(family: str) -> None:
    """A + P A P from q and A q alone, for a basis that is far from orthonormal."""
    n, rng = 40, np.random.default_rng(0)
    a = torch.from_numpy(FAMILIES[family](n))
    q, _ = torch.linalg.qr(torch.from_numpy(rng.standard_normal((n, 5))))
    known = Deflation(q.T, q.T @ a)
    rows = torch.from_numpy(rng.standard_normal((8, n)))
    rows = torch.cat([rows, rows[:2] + 1e-9 * rows[2:4], q.T[:1]])  # two that are nearly there, one that is
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    wide = widened(known, (rows, rows @ a))
    assert wide.size == 13
    assert torch.allclose(wide.q @ wide.q.T, torch.eye(13).double(), atol=1e-10)
    assert torch.allclose(wide.w, wide.q @ a, atol=1e-10 * float(a.abs().max()) * n)
    left = rows - (rows @ wide.q.T) @ wide.q
    assert float(torch.linalg.vector_norm(left, dim=1).max()) <= 0.15
    assert widened(known, None) is known


def test_krylov_spaces_that_nearly_span_a_block_leave_little_to_probes() -> None:
    """60 parameters, eight probes of 30 steps: what is left is a fiftieth of the error that was asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 5)).double()
    data = [(torch.randn(50, 4).double(), torch.randint(5, (50,)))]
    truth = dense.reference_for(model, data, totals)
    objective, goal = lh.Objective(model, data, nn.CrossEntropyLoss()), lh.Trace(rel=1e-3)  # too much for full probes
    block = lh.analyze(objective, trace=goal, density=True, path="exact").blocks["2.weight"]
    value = np.trace(truth.block(["2.weight"]))
    assert block.trace is not None and block.trace.method == "deflated" and block.trace.standard_error <= 2e-5 * value
    assert block.trace.low <= value <= block.trace.high
