"""A torch that nobody has checked passes the self-test once a process, or is refused; never is there a wrong number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from commands import Capture
from layerhess.analysis import self_test, unknown_torch
from layerhess.cli import main
from layerhess.objective import torch_version
from layerhess.objective.torch_version import PRIVATE, Private
from wrong_layers import WrongOnce, WrongTwice, of

CPU = torch.device("cpu")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """This torch is unknown; the devices that the self-test was run on."""
    seen: list[torch.device] = []
    real = self_test.run

    def run(device: torch.device) -> Iterator[self_test.Finding]:
        seen.append(device)
        return real(device)

    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    monkeypatch.setattr(unknown_torch, "_faults", {})
    monkeypatch.setattr(self_test, "run", run)
    return seen


def objective() -> lh.Objective:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return lh.Objective(model, (torch.randn(6, 3).double(), torch.arange(6) % 2), nn.CrossEntropyLoss())


def everything() -> list[Any]:
    """Every way to a number that stands on second derivatives; each raises what it raises."""
    direction = {name: p.detach().clone() for name, p in objective().parameters.items()}
    return [
        lambda: lh.analyze(objective()),
        lambda: lh.Hessian(objective()).matvec(torch.ones(26).double()),
        lambda: lh.GaussNewton(objective()).to_dense(),
        lambda: lh.eigsh(lh.Hessian(objective())),
        lambda: lh.trace(lh.EmpiricalFisher(objective())),
        lambda: lh.loss_slice(objective(), direction, points=3),
    ]


def test_an_unknown_version_is_tested_once_and_the_numbers_are_the_same(
    runs: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lh.analyze(objective()).full.eigenvalues
    assert runs == [CPU]
    for use in everything():
        use()
    assert lh.Monitor(objective(), every=1, overhead=None).step() is not None
    assert runs == [CPU]
    monkeypatch.setattr(torch_version, "CHECKED", {"2.99.0": ()})
    assert (lh.analyze(objective()).full.eigenvalues == found).all()


def test_a_version_that_was_checked_is_not_tested(runs: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    for version in torch_version.CHECKED:
        monkeypatch.setattr(torch, "__version__", version)
        unknown_torch.refuse_unless_right([CPU])
    assert runs == []
    for unknown in ("2.13.1", "2.13.0a0+git1", "2.12.0", "no number"):
        monkeypatch.setattr(unknown_torch, "_faults", {})
        monkeypatch.setattr(self_test, "cases", list)
        monkeypatch.setattr(torch, "__version__", unknown)
        unknown_torch.refuse_unless_right([CPU])
    assert runs == [CPU] * 4


def test_what_was_checked_on_a_cpu_was_not_on_a_gpu_or_another_machine(
    runs: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    assert torch_version.is_checked("cpu") and not torch_version.is_checked("cuda")
    monkeypatch.setattr(self_test, "run", lambda device: runs.append(device) or iter(()))
    unknown_torch.refuse_unless_right([torch.device("cuda:1"), CPU, torch.device("mps")])
    assert runs == [torch.device("cuda:1")]
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    unknown_torch.refuse_unless_right([torch.device("mps"), CPU])  # MPS has no float64
    assert runs == [torch.device("cuda:1"), CPU]


@pytest.mark.parametrize("wrong", [WrongOnce, WrongTwice])
def test_a_version_that_fails_is_refused_everywhere(
    runs: list[torch.device], wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "cases", lambda: [of(wrong.apply)])
    for use in everything():
        with pytest.raises(lh.CheckError) as refused:
            use()
        said = str(refused.value)
        assert "torch 2.99.0+cpu is not one of those that were checked" in said and len(said) <= 400
        assert "not right: made up" in said and "torch>=" in said and "WRONG" in refused.value.details[0]
    assert runs == [CPU]
    lh.Hessian(objective(), check=False).matvec(torch.ones(26).double())
    monitor = lh.Monitor(objective(), every=1, overhead=None)
    with pytest.warns(lh.LayerhessWarning, match="is not one of those that were checked"):  # and the training goes on
        assert monitor.step() is None


def test_the_command_line_says_so_and_ends_with_2(
    runs: list[torch.device], monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setattr(self_test, "cases", lambda: [of(WrongTwice.apply)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory.py").write_text(
        "import torch, layerhess\n"
        "def make():\n"
        "    data = (torch.ones(4, 2), torch.zeros(4, 1))\n"
        "    return layerhess.Objective(torch.nn.Linear(2, 1), data, torch.nn.MSELoss())\n"
    )
    assert main(["analyze", "factory.py:make"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "is not one of those that were checked" in told and "Traceback" not in told


def test_a_private_name_that_is_gone_is_a_refusal_and_one_that_may_be_is_not(
    runs: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_will_engine_execute_node")  # all derivatives are computed then
    lh.analyze(objective())
    monkeypatch.setattr(unknown_torch, "_faults", {})
    monkeypatch.setattr(torch_version, "PRIVATE", (*PRIVATE, Private("a module", ("_no_such",), "nothing")))
    with pytest.raises(lh.CheckError, match="it lacks what layerhess uses: _no_such of a module"):
        lh.analyze(objective())
    assert runs == [CPU]  # the first time


def test_the_test_does_not_care_where_it_is_run_and_leaves_no_trace(runs: list[torch.device]) -> None:
    places: list[Any] = [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"), objective().session]
    state = torch.get_rng_state()
    for place in places:
        unknown_torch._faults.clear()
        with place():
            unknown_torch.refuse_unless_right([CPU])
    assert torch.equal(torch.get_rng_state(), state) and runs == [CPU] * len(places)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        unknown_torch._faults.clear()
        unknown_torch.refuse_unless_right([CPU])
    finally:
        torch.set_default_dtype(default)


def test_what_torch_can_no_longer_do_is_not_right(runs: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("there is no such kernel")

    case = of(gone)
    monkeypatch.setattr(
        self_test, "_classes", lambda model, rows: (model.double(), (rows, torch.arange(8) % 3), nn.CrossEntropyLoss())
    )
    found = self_test.examined(case, CPU)
    assert not found.ok and "no such kernel" in found.outcome
