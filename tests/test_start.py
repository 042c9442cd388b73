"""Solvers that start from a part of the data: the same certified numbers, fewer passes, no part where none may be."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from layerhess import batches
from layerhess.paths import start
from references import dense
from test_eigenvalues import SMALL, assert_eigenvectors, assert_values_within_bounds, slack_of
from zoo import Case

NOTE = "started from eigenvectors of"


@pytest.fixture
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "SMALLEST_WORK", 0.0)
    monkeypatch.setattr(start, "PART", 2)
    monkeypatch.setattr(start, "FEWEST", 1)


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_whole_zoo_comes_out_the_same_from_starts(case: Case) -> None:
    reference = dense.of_case(case.name)
    built = case.build(torch.float64, 0)
    analysis = lh.analyze(built.objective(), blocks="parameter", top=3, bottom=2, tol=1e-5, path="exact")
    slack = slack_of(case, reference)
    assert_values_within_bounds(analysis.full, reference.matrix, slack)
    assert_eigenvectors(analysis.full, reference.matrix, list(reference.places), slack)
    for name, block in analysis.blocks.items():
        assert_values_within_bounds(block, reference.block([name]), slack)


def _texts(seed: int = 0, sizes: tuple[int, ...] = (160, 160, 160)) -> tuple[nn.Module, list[Any]]:
    """A smooth network for sequences, wide enough for Lanczos, its data in batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 6))
    data = []
    for size in sizes:
        x = torch.randn(size, 9, 12)
        data.append((x, x[..., :6].argmax(-1)))

    def loss(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        x, y = batch
        return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"), y.numel()

    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        for batch in data:
            optimiser.zero_grad()
            total, count = loss(model, batch)
            (total / count).backward()
            optimiser.step()
    return model, [data, lh.batch_loss(loss)]


def test_a_start_saves_products_and_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (data, loss) = _texts()
    before = copy.deepcopy(model.state_dict())
    cold = lh.analyze(lh.Objective(model, data, loss), blocks="weight", full=True)
    monkeypatch.setattr(start, "SMALLEST_WORK", 0.0)
    warm = lh.analyze(lh.Objective(model, data, loss), blocks="weight", full=True)
    again = lh.analyze(lh.Objective(model, data, loss), blocks="weight", full=True)
    assert any(NOTE in note and "60 of 480" in note for note in warm.notes)
    assert not any(NOTE in note for note in cold.notes)
    for one, other in zip(cold.spectra(), warm.spectra(), strict=True):
        assert other.converged.all() and other.missed_factor < 4.0
        assert abs(one.eigenvalues[0] - other.eigenvalues[0]) <= one.error_bounds[0] + other.error_bounds[0]
    assert sum(s.steps for s in warm.spectra()) < sum(s.steps for s in cold.spectra())
    assert [s.eigenvalues[0] for s in warm.spectra()] == [s.eigenvalues[0] for s in again.spectra()]
    assert warm.counts.by_phase["start"]["products"] > 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.usefixtures("_always")
def test_the_part_holds_the_examples_that_the_loss_bends_most() -> None:
    """Half of the outputs are so sure that cross entropy has no curvature there."""
    model = nn.Linear(6, 3, bias=False)
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    x[::2] *= 1e4
    objective = lh.Objective(model, (x, torch.zeros(16, dtype=torch.long)), nn.CrossEntropyLoss())
    with objective.session():
        part = start._part(objective, next(iter(objective.batches())), lh.ledger.Ledger())
    assert torch.equal(part[0], x[1::2])


@pytest.mark.usefixtures("_always")
def test_no_part_is_taken_where_batches_must_stay_whole() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 4)).train()
    torch.manual_seed(0)
    data = (torch.randn(32, 8), torch.randint(0, 4, (32,)))
    analysis = lh.analyze(lh.Objective(model, data, nn.CrossEntropyLoss()), full=False)
    assert not any(NOTE in note for note in analysis.notes)
    assert "start" not in analysis.counts.by_phase


@pytest.mark.usefixtures("_always")
def test_a_part_that_fails_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (data, loss) = _texts()

    def broken(parts: list[Any]) -> list[Any]:
        return [(part[0][..., :-1], part[1]) for part in parts]

    monkeypatch.setattr(batches, "joined", broken)
    analysis = lh.analyze(lh.Objective(model, data, loss), blocks="weight", full=False)
    assert all(block.converged.all() for block in analysis.blocks.values())
    assert not any(NOTE in note for note in analysis.notes)


def test_parts_are_joined_where_they_fit_and_kept_apart_where_not() -> None:
    a, b, c = torch.zeros(2, 3), torch.ones(1, 3), torch.ones(1, 4)
    (one,) = batches.joined([{"x": a, "flag": True}, {"x": b, "flag": True}])
    assert one["flag"] is True and torch.equal(one["x"], torch.cat([a, b]))
    assert len(batches.joined([(a,), (c,)])) == 2
    assert len(batches.joined([{"x": a}, {"y": b}])) == 2
    assert len(batches.joined([{"x": a, "k": 1}, {"x": b, "k": 2}])) == 2
    assert len(batches.joined([(a,), (b.double(),)])) == 2


def test_a_start_that_knows_nothing_costs_a_step_and_no_truth() -> None:
    values = torch.cat([torch.tensor([4.0]), torch.linspace(0.0, 1.0, 200)]).double()
    from layerhess.solvers.lanczos import Lanczos
    from layerhess.solvers.process import Wanted
    from layerhess.vectors import random_unit

    guess = torch.zeros(201, dtype=torch.float64)
    guess[100] = 1.0
    process = Lanczos(201, Wanted(top=1), 1e-3, lambda i: random_unit(201, 0, "x", i), start=guess)
    while not process.proposes:
        process.tell(process.ask() * values)
    assert np.isclose(process.candidates().values[0], 4.0, rtol=1e-3)
