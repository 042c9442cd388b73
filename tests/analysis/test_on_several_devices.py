"""Paths and questions where parameters lie on several devices: one device's numbers, and every vector in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from commands import quick_report
from killed import in_pass, killed
from layerhess.analysis.waves import waves
from layerhess.curvature.data_pass import DataPass
from layerhess.curvature.device import Budget
from layerhess.curvature.request import Request
from layerhess.linalg.eigen.krylov_basis import Basis
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.spread_rows import SpreadRows
from layerhess.objective import parameters
from second_device import THERE, TwoDevices, moved_there

FAR = ("layers.0", "head")  # what lies on the second device; a layer on the first one lies between
ACROSS = {"ends": ["first.*", "head.*"], "layers": "layers.*"}
ESTIMATES: Any = {
    "trace": lh.Trace(max_probes=8),
    "diagonal": lh.Diagonal(max_probes=4),
    "density": lh.Density(probes=3, steps=3),
    "coupling": lh.Coupling(probes=3),
    "sampling": True,
}


class Layers(nn.Module):
    """Each layer takes its input to where its weights are."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.first, self.head = nn.Linear(5, 10), nn.Linear(10, 2)
        self.layers = nn.ModuleList([nn.Linear(10, 10) for _ in range(2)])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, *self.layers):
            x = self.activation(layer(x.to(layer.weight.device)))
        return self.head(x.to(self.head.weight.device))


def objective(activation: nn.Module, *far: str) -> lh.Objective:
    drawn = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 5, generator=drawn).double(), torch.randint(2, (8,), generator=drawn)) for _ in range(2)]
    model = Layers(activation)
    for name in far:
        moved_there(model.get_submodule(name))
    return lh.Objective(model, data, nn.CrossEntropyLoss())


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of every product that is made, the vectors and the sums lie beside the block's first parameter; its phases."""
    plain, phases = DataPass.run, []

    def run(self: DataPass, requests: Mapping[str, Request]) -> dict[str, Tensor]:
        made = plain(self, requests)
        for key, request in requests.items():
            place = self.objective.parameters[request.block.parameters[0]].device
            assert request.vectors.device == place and made[key].device == place, f"{key}, {self.counters.phase}"
        phases.append(self.counters.phase)
        return made

    monkeypatch.setattr(parameters, "_has_no_values", lambda parameter: False)
    quick_report(monkeypatch)
    monkeypatch.setattr(DataPass, "run", run)
    return phases


def numbers(analysis: lh.Analysis) -> dict[str, Any]:
    found: dict[str, Any] = {"gradient": analysis.gradient_norm}
    for name, one in {**analysis.blocks, "(full)": analysis.full}.items():
        if one is None:
            continue
        found[f"{name} values"], found[f"{name} errors"] = one.eigenvalues, one.sampling_errors
        found[f"{name} steps"], found[f"{name} missed"] = one.steps, [one.missed_above, one.missed_below]
        for i, vector in enumerate(one.eigenvectors):
            found[f"{name} vector {i}"] = np.concatenate([part.reshape(-1) for part in vector.values()])
        if one.trace is not None:
            found[f"{name} trace"] = [one.trace.value, one.trace.standard_error, one.trace.sampling_error]
        if one.diagonal is not None:
            found[f"{name} diagonal"] = np.concatenate([part.ravel() for part in one.diagonal.value.values()])
        if one.density is not None:
            found[f"{name} nodes"], found[f"{name} weights"] = one.density.nodes, one.density.weights
    if analysis.coupling is not None:
        found["coupling"], found["its error"] = analysis.coupling.value, analysis.coupling.standard_error
    return found


def assert_same(found: lh.Analysis, expected: lh.Analysis) -> None:
    ours, theirs = numbers(found), numbers(expected)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        # An eigenvector's sign is rounding's choice.
        sign = -1.0 if " vector " in key and np.dot(ours[key], value) < 0.0 else 1.0
        np.testing.assert_allclose(np.multiply(sign, ours[key]), value, rtol=1e-10, atol=1e-10, err_msg=key)
    assert found.converged == expected.converged


CASES: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "blocks of modules": (nn.Tanh(), {"blocks": "module", "top": 2, "bottom": 1}),
    "blocks across devices": (nn.Tanh(), {"blocks": ACROSS, "top": 2}),
    "power": (nn.Tanh(), {"blocks": "module", "method": "power", "exclude": None}),
    "rows": (nn.ReLU(), {"blocks": "module", "operator": "gauss_newton", "path": "gram", "full": False}),
    "waves": (nn.Tanh(), {"blocks": ACROSS, "top": 2, "memory": "1MB"}),
    "differences": (nn.Tanh(), {"blocks": "module", "path": "differences", "tol": 1e-2}),
    "segments": (nn.Tanh(), {"blocks": "module", "segments": ["layers.*"]}),
    "estimates": (nn.Tanh(), {"blocks": "module", "path": "exact", **ESTIMATES}),
    "estimates of blocks across devices": (nn.Tanh(), {"blocks": ACROSS, **ESTIMATES}),
    "estimates by factors": (nn.ReLU(), {"blocks": "weight", "operator": "gauss_newton", **ESTIMATES}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_one_device(case: str, in_place: list[str]) -> None:
    activation, asked = CASES[case]
    expected = lh.analyze(objective(activation), **asked)
    with TwoDevices():
        found = lh.analyze(objective(activation, *FAR), **asked)
    assert_same(found, expected)
    assert {"checks", "solve", "rounding"} <= set(in_place) and found.settings["device"] == "cpu, meta"


def test_there_is_more_than_one_wave() -> None:
    sizes = {"ends": 82, "layers": 220, "(full)": 302}
    assert len(waves(sizes, Wanted(top=2), Budget(10**6), torch.float64, exclude=0.05, width=2).waves) == 2


def test_the_rows_of_a_basis_lie_beside_their_parameters(in_place: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, list[tuple[int, torch.device]]] = {}
    plain = Basis.append

    def append(self: Basis, *given: Any) -> Tensor:
        made = plain(self, *given)
        for rows in (self.q, self.w):
            parts = rows.parts if isinstance(rows, SpreadRows) else [rows]
            found[self.n] = [(part.shape[1], part.device) for part in parts]
            assert made.device == rows.device == found[self.n][0][1]
        return made

    monkeypatch.setattr(Basis, "append", append)
    here = torch.device("cpu")
    with TwoDevices():
        lh.analyze(objective(nn.Tanh(), *FAR), blocks=ACROSS, path="exact")
        lh.analyze(objective(nn.Tanh(), "layers"), blocks={"first": "first.*", "layers.1": "layers.1.*"}, full=False)
        lh.eigsh(lh.Hessian(objective(nn.Tanh(), "head")).block("first.weight"), k=1)
    assert found == {
        82: [(60, here), (22, THERE)],  # the ends
        220: [(110, THERE), (110, here)],  # the layers
        302: [(60, here), (132, THERE), (110, here)],  # the full model
        60: [(60, here)],
        110: [(110, THERE)],
        50: [(50, here)],
    }


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(in_place: list[str], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"blocks": "module", "top": 2, **ESTIMATES}

    def run() -> lh.Analysis:
        return lh.analyze(objective(nn.Tanh(), *FAR), out=tmp_path / "run", resume=True, **asked)

    with TwoDevices():
        killed(run, in_pass(3))
        found = run()
    assert_same(found, lh.analyze(objective(nn.Tanh()), **asked))
    with TwoDevices(), pytest.raises(lh.InputError, match="cpu, meta"):  # a finished run of another kind of machine
        lh.analyze(objective(nn.Tanh()), out=tmp_path / "run", resume=True, **asked)


def test_operators_by_hand(in_place: list[str]) -> None:
    def made(*far: str) -> list[Any]:
        hessian = lh.Hessian(objective(nn.Tanh(), *far), blocks="module")
        head = hessian.block("head")
        return [
            head.to_dense().cpu(), head.to_scipy().matvec(np.ones(22)), lh.eigsh(head, k=2).values,
            lh.eigsh(hessian, k=1).values, lh.trace(head, probes=3).value, lh.coupling(hessian, probes=2).value,
            lh.density(head, probes=2, steps=3).nodes,
        ]  # fmt: skip

    with TwoDevices():
        found = made(*FAR)
    for ours, theirs in zip(found, made(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("far", [FAR, ("first",)])
def test_a_slice_of_the_loss_is_that_of_one_device(in_place: list[str], far: tuple[str, ...]) -> None:
    directions = (("random", 0), ("random", 1))
    near = lh.loss_slice(objective(nn.Tanh()), directions, points=3)
    with TwoDevices():
        found = lh.loss_slice(objective(nn.Tanh(), *far), directions, points=3)
    for name in ("loss", "quadratic", "slope", "curvature"):
        np.testing.assert_allclose(getattr(found, name), getattr(near, name), rtol=1e-12, atol=1e-14, err_msg=name)
    assert found.agrees and in_place
