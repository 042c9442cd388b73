"""Exceptions and Ctrl-C in mid-analysis: they reach the caller, the model is as it was, and numbers are not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
import layerhess.show.report  # its first import draws random numbers: test_snapshot.py has a test of that
from commands import quick_report
from ctrl_c import press_ctrl_c
from delicate import BATCHES, Armed, delicate
from layerhess.analysis.progress import Snapshot
from witness import untouched


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of every stage of the estimates are drawn where a limit is met, and nowhere else."""
    if "limit" not in request.node.name:
        quick_report(monkeypatch)


# -- after exceptions --------------------------------------------------------------------------------------------------


class Trouble(Exception):
    """What the user's code raises in these tests."""


class Switch:
    """Raises once it is on."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind, self.on = kind, False

    def __call__(self) -> None:
        if self.on:
            raise self.kind("the user's own")

    def turn_on(self) -> None:
        self.on = True


class Reading:
    """Batches that look at the switch before the second one."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(BATCHES):
            if i == 1:
                self.switch()
            yield batch


def with_switch(place: str, switch: Switch) -> tuple[nn.Module, lh.Objective]:
    """A delicate model whose loss, data or forward hook looks at the switch."""
    model = delicate()
    criterion = nn.CrossEntropyLoss()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        switch()
        return criterion(output, target)

    if place == "hook":
        model.second.register_forward_hook(lambda module, inputs, output: switch())
    data = Reading(switch) if place == "data" else BATCHES
    return model, lh.Objective(model, data, loss if place == "loss" else criterion)


@pytest.mark.usefixtures("no_graph_is_kept")
@pytest.mark.parametrize("kind", [Trouble, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["survey", "first step", "later step"])
@pytest.mark.parametrize("place", ["loss", "data", "hook"])
def test_an_exception_of_the_user_comes_through_and_the_model_comes_back(
    place: str, when: str, kind: type[BaseException]
) -> None:
    switch = Switch(kind)
    model, objective = with_switch(place, switch)
    progress = Armed(switch.turn_on, {"survey": -1, "first step": 0, "later step": 3}[when])
    if when == "survey":
        switch.turn_on()
    with untouched(model), pytest.raises(kind, match="the user's own"):
        lh.analyze(objective, top=2, tol=1e-4, progress=progress)


@pytest.mark.parametrize("place", ["loss", "data", "hook"])
def test_an_exception_during_a_product_leaves_the_model_as_it_was(place: str) -> None:
    switch = Switch(Trouble)
    model, objective = with_switch(place, switch)
    hessian = lh.Hessian(objective)
    switch.turn_on()
    with untouched(model), pytest.raises(Trouble):
        hessian.matvec(torch.ones(hessian.shape[0]))
    with untouched(model), pytest.raises(Trouble), hessian.session():
        hessian.matvec(torch.ones(hessian.shape[0]))
    switch.on = False
    assert torch.isfinite(hessian.matvec(torch.ones(hessian.shape[0]))).all(), "and it works again"


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def assert_partial(analysis: lh.Analysis) -> None:
    assert analysis.partial == "interrupted"
    assert not analysis.converged
    assert "interrupted" in str(analysis)
    for spectrum in analysis.spectra():
        assert spectrum.ok or spectrum.status.startswith("not converged")


@pytest.mark.usefixtures("no_graph_is_kept")
@pytest.mark.parametrize("previous", [False, True], ids=["new folder", "over an older result"])
def test_an_interrupt_raised_in_the_loss_leaves_a_partial_result(tmp_path: Path, previous: bool) -> None:
    switch = Switch(KeyboardInterrupt)
    model, objective = with_switch("loss", switch)
    if previous:
        lh.analyze(objective, blocks="weight", full=False, tol=0.5, out=tmp_path / "run")
    with untouched(model), pytest.raises(KeyboardInterrupt) as stop:
        lh.analyze(objective, top=2, tol=1e-4, out=tmp_path / "run", progress=Armed(switch.turn_on, 4))
    assert any(str(tmp_path / "run") in note for note in stop.value.__notes__)
    analysis = lh.load(tmp_path / "run")
    assert_partial(analysis)
    assert analysis.full is not None and len(analysis.full.eigenvalues) == 2, "what there was is there"


@pytest.mark.usefixtures("no_graph_is_kept", "ctrl_c_raises")
def test_a_real_ctrl_c_waits_for_the_next_batch_and_leaves_a_partial_result(tmp_path: Path) -> None:
    model = delicate()
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    with untouched(model), pytest.raises(KeyboardInterrupt) as stop:
        lh.analyze(objective, top=2, tol=1e-4, out=tmp_path / "run", progress=Armed(press_ctrl_c, 3))
    assert any(str(tmp_path / "run") in note for note in stop.value.__notes__)
    analysis = lh.load(tmp_path / "run")
    assert_partial(analysis)
    assert analysis.counts.passes == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Calls:
    """How many there were, and in which of them Ctrl-C is pressed (what a model holds itself is restored)."""

    press_in, made = 0, 0


class Counted(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        Calls.made += 1
        if Calls.made == Calls.press_in:
            press_ctrl_c()
        return super().forward(x)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_in_the_self_check_waits_for_one_evaluation_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counted(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    objective = lh.Objective(model, (torch.randn(8, 2).double(), torch.arange(8) % 2), nn.CrossEntropyLoss())
    for call in range(4, 25, 4):  # the survey has the first few
        monkeypatch.setattr(Calls, "press_in", call)
        monkeypatch.setattr(Calls, "made", 0)
        with untouched(model), pytest.raises(KeyboardInterrupt):
            lh.analyze(objective)
        assert Calls.made <= call + 1  # what wants the output too looks for no signal


@pytest.mark.usefixtures("no_graph_is_kept", "ctrl_c_raises")
def test_ctrl_c_before_the_first_number_reaches_the_caller(tmp_path: Path) -> None:
    model = delicate()
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    with untouched(model), pytest.raises(KeyboardInterrupt):
        lh.analyze(objective, top=2, out=tmp_path / "run", progress=Armed(press_ctrl_c, 0))
    if (tmp_path / "run").exists():
        assert_partial(lh.load(tmp_path / "run"))


class AtTheEnd(Armed):
    """Acts when everything has converged."""

    def update(self, snapshot: Any) -> None:
        if snapshot.converged == snapshot.total:
            self.act()


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_after_the_last_step_is_neither_forgotten_nor_costs_the_numbers(tmp_path: Path) -> None:
    model = delicate()
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    with untouched(model), pytest.raises(KeyboardInterrupt):
        lh.analyze(objective, top=2, out=tmp_path / "run", progress=AtTheEnd(press_ctrl_c, -1))
    analysis = lh.load(tmp_path / "run")
    assert all(spectrum.ok for spectrum in analysis.spectra())


def test_analyses_in_other_threads_work() -> None:
    """There, signals are nobody's business."""
    model = delicate()
    found: list[Any] = []

    def work() -> None:
        found.append(lh.analyze(lh.Objective(model, BATCHES, nn.CrossEntropyLoss()), full=False))

    thread = threading.Thread(target=work)
    with untouched(model):
        thread.start()
        thread.join()
    assert found and found[0].converged


class PressesAtTheEnd:
    """A progress receiver that sends Ctrl-C once everything has converged."""

    def forecast(self, forecast: object) -> None:
        """Nothing to do."""

    def note(self, sentence: str) -> None:
        """Nothing to do."""

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.converged == snapshot.total:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_after_the_last_pass_is_not_forgotten(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    objective = lh.Objective(model, (torch.randn(5, 3), torch.randn(5, 2)), torch.nn.MSELoss())
    with pytest.raises(KeyboardInterrupt):
        lh.analyze(objective, progress=PressesAtTheEnd(), out=tmp_path / "run")
    assert lh.load(tmp_path / "run").partial


# -- with estimates under way ------------------------------------------------------------------------------------------

EVERYTHING: Any = {"trace": True, "diagonal": True, "density": True, "coupling": True, "sampling": True}


@cache
def finished() -> lh.Analysis:
    analysis = lh.analyze(lh.Objective(delicate(), BATCHES, nn.CrossEntropyLoss()), **EVERYTHING)
    assert analysis.converged and analysis.counts.passes > 29
    return analysis


def assert_honest_estimates(analysis: lh.Analysis) -> None:
    """What was cut short says so; what is shown as done is within its own error of the truth."""
    assert not analysis.converged and analysis.partial
    assert "NOT CONVERGED" in str(analysis) or "STOPPED EARLY" in str(analysis)
    assert "stopped early" in str(analysis)
    for spectrum in analysis.spectra():
        if spectrum.trace is not None and spectrum.trace.probes < 2:
            assert spectrum.trace.method == "exact" or not spectrum.trace.converged
        if spectrum.density is not None and spectrum.density.probes:
            assert "stopped early" in spectrum.density.status or spectrum.density.steps == 30


@pytest.mark.parametrize("passes", [1, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 29))])
def test_a_limit_in_mid_estimation_leaves_an_honest_result(tmp_path: Path, passes: int) -> None:
    objective = lh.Objective(delicate(), BATCHES, nn.CrossEntropyLoss())
    with untouched(objective.model):
        analysis = lh.analyze(objective, max_passes=passes, out=tmp_path / "run", **EVERYTHING)
    assert analysis.partial.startswith("max_passes") and analysis.counts.passes == passes
    assert_honest_estimates(analysis)
    again = lh.load(tmp_path / "run")
    assert_honest_estimates(again)
    assert (tmp_path / "run" / "report.html").exists()
    for early, late in zip(analysis.spectra(), finished().spectra(), strict=True):
        if early.trace is not None and early.trace.converged:
            assert late.trace is not None
            slack = 5.0 * (early.trace.standard_error + late.trace.standard_error) + 1e-5 * abs(late.trace.value)
            assert abs(early.trace.value - late.trace.value) <= slack


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("after", [2, pytest.param(12, marks=pytest.mark.slow), 28])
def test_ctrl_c_in_mid_estimation_leaves_an_honest_result(tmp_path: Path, after: int) -> None:
    objective = lh.Objective(delicate(), BATCHES, nn.CrossEntropyLoss())
    with untouched(objective.model), pytest.raises(KeyboardInterrupt) as stop:
        lh.analyze(objective, out=tmp_path / "run", progress=Armed(press_ctrl_c, after), **EVERYTHING)
    assert any(str(tmp_path / "run") in note for note in stop.value.__notes__)
    analysis = lh.load(tmp_path / "run")
    assert analysis.partial == "interrupted"
    assert_honest_estimates(analysis)


def test_a_time_limit_in_mid_estimation_leaves_an_honest_result() -> None:
    objective = lh.Objective(delicate(), BATCHES, nn.CrossEntropyLoss())
    analysis = lh.analyze(objective, time_limit=1e-9, **EVERYTHING)
    assert analysis.partial.startswith("time_limit")
    assert not analysis.converged and all(s.trace is None for s in analysis.spectra())
