"""What the ranks of tests/linalg/eigen/test_slices.py compute; alone, the same functions give whole rows."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from commands import quick_report
from killed import in_pass
from layerhess.curvature.journal import Journal
from layerhess.linalg.eigen.krylov_basis import Basis
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.long_rows import Space
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective import parameters
from layerhess.objective.group import world
from on_ranks import numbers, place
from references.spectra import rotated
from second_device import TwoDevices, moved_there

N = 301  # not a multiple of 2 or 3
SPECTRA = {
    "powers": 10.0 / np.arange(1, N + 1),
    "copies": np.concatenate([[3.0, 3.0, 2.0, 2.0, -2.5], np.linspace(-1.0, 1.0, N - 5)]),
    "of low rank": np.concatenate([[3.0, 2.0, 1.0], np.zeros(N - 3)]),
}
ASKED: dict[str, tuple[Wanted, dict[str, Any]]] = {
    "largest": (Wanted(top=1), {}),
    "both ends": (Wanted(top=3, bottom=1), {"width": 2}),
    "few rows": (Wanted(top=1), {"basis_limit": 12, "exclude": 0.05}),
    "few float32 rows": (Wanted(top=2), {"basis_limit": 14, "dtype": torch.float32, "tol": 1e-4}),
}


def solved() -> dict[str, dict[str, Any]]:
    """Every spectrum and question: pairs, what is excluded, steps, and the numbers that a row has here."""
    found = {}
    with world().together() as group:
        space = Space(N)
        if group.size > 1:
            space = Space(N, group.here(N), group.gathered, functools.partial(group.joined, n=N))
        for name, values in SPECTRA.items():
            matrix = torch.from_numpy(rotated(values, seed=1))
            for question, (wanted, options) in ASKED.items():
                given = {"tol": 1e-8, **options}
                solver = Lanczos(N, wanted, given.pop("tol"), lambda i: random_unit(N, 0, "s", i), space=space, **given)
                while not solver.proposes:
                    solver.tell(solver.ask().double() @ matrix)
                    assert solver.steps < 3 * N
                pairs = solver.candidates()
                found[f"{name}, {question}"] = {
                    "values": pairs.values, "vectors": pairs.vectors.double().numpy(), "residuals": pairs.residuals,
                    "stored": pairs.stored, "steps": solver.steps, "columns": solver.basis.q.shape[1],
                }  # fmt: skip
    return found


class Apart(nn.Sequential):
    """Each layer takes its input to where its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x.to(next(layer.parameters(), x).device))
        return x


def analysed_on_two_devices() -> dict[str, Any]:
    """The same, the last layer of every process's model on a second device."""
    parameters._has_no_values = lambda parameter: False
    with TwoDevices():
        return analysed(far=True)


def made(width: int, far: bool) -> lh.Objective:
    """A network of 31 width + 10 parameters, its last layer far away or not, and this rank's share of the data."""
    rank, ranks = place()
    drawn = torch.Generator().manual_seed(3)
    x, y = torch.randn(60, 20, generator=drawn).double(), torch.randint(0, 10, (60,), generator=drawn)
    torch.manual_seed(0)
    model = Apart(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 10)).double()
    if far:
        moved_there(model[2])
    return lh.Objective(model, [(x[rank::ranks], y[rank::ranks])], nn.CrossEntropyLoss())


def analysed(width: int = 40, far: bool = False, **arguments: Any) -> dict[str, Any]:
    """An analysis whose bases do not fit comfortably, and the columns of each basis."""
    columns, real = {}, Basis.__init__
    told: list[int] = []
    close = Journal.close

    def init(self: Basis, *given: Any, **options: Any) -> None:
        real(self, *given, **options)
        columns[self.n] = self.space.length

    asked = {"top": 2, "full": True, "path": "exact", "memory": "6MB", "tol": 1e-7, **arguments}

    def closed(self: Journal) -> None:
        told.append(self.replayed)
        close(self)

    Basis.__init__, Journal.close = init, closed  # type: ignore[method-assign]
    try:
        analysis = lh.analyze(made(width, far), **asked)
    finally:
        Basis.__init__, Journal.close = real, close  # type: ignore[method-assign]
    found = numbers(analysis)
    return {**found, "converged": analysis.converged, "columns": columns, "told": told[0]}


# -- killed, and gone on with by other processes -----------------------------------------------------------------------

FOLDER = "SLICED_BASES"  # the variable with the folder of the runs
RUNS: dict[str, dict[str, Any]] = {
    "fits": {},
    "fits in two": {"width": 90, "blocks": {"all": "*"}, "full": False, "memory": "1MB", "exclude": None, "tol": 1e-5},
}


def run(name: str, **arguments: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        return analysed(out=Path(os.environ[FOLDER], name), **RUNS[name], **arguments)


def dies(name: str) -> None:
    """Every process is killed in the sixth pass."""
    in_pass(6)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(name)


dies_where_it_fits = functools.partial(dies, "fits")
dies_where_it_fits_in_two = functools.partial(dies, "fits in two")
goes_on = functools.partial(run, "fits", resume=True)
goes_on_in_two = functools.partial(run, "fits in two", resume=True)
