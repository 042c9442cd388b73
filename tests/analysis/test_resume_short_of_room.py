"""A run that is short of memory or of disk goes on, says so, and can be resumed; or is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from commands import quick_report
from killed import assert_same_bits, in_pass, killed
from layerhess.checks.rounding import RoundingMeter
from layerhess.curvature import record_file
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.journal import Journal
from layerhess.objective.objective import Objective
from layerhess.results import store
from resumed import analyze, data, network, objective, uninterrupted


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    """No graph of more than so many examples fits."""
    real = HessianGraph.__init__

    def init(self: HessianGraph, objective: Any, batch: Any, *others: Any) -> None:
        if len(batch[0]) > examples:
            raise torch.OutOfMemoryError("CUDA out of memory, in this test")
        real(self, objective, batch, *others)

    monkeypatch.setattr(HessianGraph, "__init__", init)


def test_where_memory_runs_out_pieces_are_halved_and_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: Any = {"top": 2, "path": "exact"}
    whole = analyze(objective(), **arguments)
    short_of_memory(monkeypatch, 8)  # as many as a sample has; batches have 12
    halved = analyze(objective(), **arguments)
    assert any("cut into pieces of 6 examples" in note for note in halved.notes)
    assert halved.converged and halved.counts.passes == whole.counts.passes
    for one, other in zip(whole.spectra(), halved.spectra(), strict=True):
        assert one.eigenvalues == pytest.approx(other.eigenvalues, rel=1e-10)
    killed(lambda: analyze(objective(), out=tmp_path / "run", **arguments), in_pass(3))
    resumed = analyze(objective(), out=tmp_path / "run", resume=True, **arguments)
    resumed.settings.pop("identity")
    assert_same_bits(halved, resumed)


def test_pieces_are_halved_as_often_as_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 12)  # a batch of the data
    whole = analyze(objective(), path="exact")
    with monkeypatch.context() as patched:
        short_of_memory(patched, 2)
        cut = analyze(objective(), path="exact", sampling=True)
    assert any("cut into pieces of 2 examples" in note for note in cut.notes)
    for one, other in zip(whole.spectra(), cut.spectra(), strict=True):
        assert one.eigenvalues == pytest.approx(other.eigenvalues, rel=1e-10)


def test_memory_that_runs_out_in_the_survey_does_not_change_what_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is seen twice, and the run that goes on need not run out of memory."""
    real, seen = Objective.terms, []

    def terms(self: Objective, batch: Any) -> Any:
        seen.append(len(batch[0]))
        return real(self, batch)

    class Hungry(nn.Linear):
        most = 5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory, in this test")
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Hungry(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    free = analyze(objective(model=model), top=2, out=tmp_path / "free")
    killed(lambda: analyze(objective(model=model), out=tmp_path / "run", top=2), in_pass(2))
    monkeypatch.setattr(Hungry, "most", 100)
    monkeypatch.setattr(Objective, "terms", terms)
    resumed = analyze(objective(model=model), out=tmp_path / "run", resume=True, top=2)
    assert max(seen) <= 3 and any("cut into pieces of 3 examples" in note for note in resumed.notes)
    assert_same_bits(free, resumed)


@pytest.mark.parametrize("what", ["the copy", "a graph of it"])
def test_rounding_is_measured_as_before_the_run_was_resumed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ran out in the first run, for the copy in another precision or for a graph of it, and does not later."""

    def starve(patched: pytest.MonkeyPatch) -> None:
        if what == "the copy":
            patched.setattr(RoundingMeter, "_copied", lambda meter: out_of_memory())
            return
        real = HessianGraph.__init__

        def init(self: HessianGraph, objective: Any, batch: Any, *others: Any) -> None:
            if len(batch[0]) > 4 and objective.origin is not None and others[1].phase == "rounding":
                out_of_memory()
            real(self, objective, batch, *others)

        patched.setattr(HessianGraph, "__init__", init)

    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory, in this test")

    arguments: Any = {"top": 2, "path": "exact", "tol": 1e-8}
    model, part = network(dtype=torch.float32), data(torch.float32)
    with monkeypatch.context() as patched:
        starve(patched)
        free = analyze(objective(model=model, data=part), **arguments)
        told = free.notes
        killed(lambda: analyze(objective(model=model, data=part), out=tmp_path / "run", **arguments),
               in_pass(free.counts.passes))  # fmt: skip
    resumed = analyze(objective(model=model, data=part), out=tmp_path / "run", resume=True, **arguments)
    assert any("out of memory" in note or "ran out" in note for note in told) and resumed.notes == told
    resumed.settings.pop("identity")
    assert_same_bits(free, resumed)


def test_where_batches_must_not_be_cut_memory_that_runs_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    with monkeypatch.context() as patched:
        short_of_memory(patched, 8)
        with pytest.raises(lh.InputError, match="out of memory"):
            analyze(objective(model=norm, data=data()[:1]), path="exact")


def test_a_disk_that_fills_up_costs_the_journal_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = record_file._write
    room = [25_000]

    def write(stream: Any, content: Any) -> None:
        room[0] -= len(memoryview(content).cast("B"))
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        real(stream, content)

    with monkeypatch.context() as patched:
        patched.setattr(record_file, "_write", write)
        part = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", max_passes=9)
    assert any("No space left on device" in note and "resume would go on" in note for note in part.notes)
    journal = Journal(store.journal_path(tmp_path / "run"), Counters(), resume=True)
    assert 0 < journal.passes < 9
    journal.close()
    resumed = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", resume=True)
    resumed.settings.pop("identity")
    assert_same_bits(uninterrupted("top"), resumed)
