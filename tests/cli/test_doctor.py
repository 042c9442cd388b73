"""``layerhess doctor``: what is right, what is known to be wrong and refused, and what must not be trusted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from commands import Capture
from layerhess.cli import doctor, main, self_test
from layerhess.cli.self_test import REFUSED, RIGHT, Case, Finding

CPU = torch.device("cpu")


def of(forward: Any, *, known: bool = False) -> Case:
    """A case of one layer that computes ``forward(x w')``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(forward(self.inner(x)))
            return scores

    return Case("made up", lambda: self_test._classes(Net(), self_test._rows(8, 4)), known)


class WrongTwice(torch.autograd.Function):
    """A square whose gradient is right, and whose second derivative is 30 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _Doubled.apply(x) * grad  # type: ignore[no-any-return, no-untyped-call]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.6 * grad


class WrongOnce(torch.autograd.Function):
    """An identity whose gradient is 10 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.1 * grad


@pytest.fixture(scope="module")
def here() -> list[Finding]:
    return list(self_test.run(CPU))


def test_this_machine_is_right_or_refuses_what_is_wrong(here: list[Finding]) -> None:
    assert all(finding.ok for finding in here), here
    assert all(finding.outcome == RIGHT for finding in here if not finding.known_wrong)
    kinds = {finding.name for finding in here}
    assert kinds >= {
        "least squares, by hand", "convolution", "batch norm, training", "batch norm, evaluation", "layer norm",
        "group norm", "attention", "multi-head attention", "GELU", "SiLU", "softplus", "cross entropy", "LSTM",
        "embedding", "weight_norm",
    }  # fmt: skip
    right = [finding for finding in here if finding.outcome == RIGHT]
    assert max(finding.error for finding in right) < 1e-8 and max(finding.single_error for finding in right) < 1e-5


def test_weight_norm_is_wrong_here_and_refused(here: list[Finding]) -> None:
    for finding in here:
        if finding.known_wrong and finding.outcome != RIGHT:
            assert finding.outcome == REFUSED and finding.error > 1e-2 and "asymmetric" in finding.detail


def test_a_second_derivative_that_is_wrong_is_found() -> None:
    found = self_test.examined(of(WrongTwice.apply), CPU)
    assert not found.ok and found.outcome.startswith("WRONG") and found.error > 1e-2
    assert self_test.examined(of(lambda x: x * x), CPU).outcome == RIGHT


def test_a_gradient_that_is_wrong_is_found() -> None:
    found = self_test.examined(of(WrongOnce.apply), CPU)
    assert not found.ok and found.error > 1e-3


def test_float32_that_differs_is_found() -> None:
    coarse = self_test.examined(of(lambda x: x * x if x.dtype == torch.float64 else 1.01 * x * x), CPU)
    assert not coarse.ok and coarse.error < 1e-8 and coarse.single_error > 1e-3


def test_what_is_known_to_be_wrong_is_right_only_where_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in self_test.cases() if case.name == "weight_norm")
    assert self_test.examined(case, CPU).ok
    monkeypatch.setattr("layerhess.analysis.operators.verified", lambda *arguments: None)
    blind = self_test.examined(case, CPU)
    assert blind.ok == (blind.outcome == RIGHT) and (blind.ok or "AND NOT NOTICED" in blind.outcome)


def test_a_layer_without_a_second_derivative_is_not_right() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * (1.0 - x.tanh() ** 2)

    found = self_test.examined(of(Once.apply), CPU)
    assert not found.ok and found.outcome == "WRONG, refused by the self-check"
    found = self_test.examined(of(lambda x: torch.cdist(x, x + 1.0)[:, :6]), CPU)
    assert not found.ok and found.outcome.startswith("refused: ") and found.error != found.error
    assert doctor.line(found).startswith("  made up                    -     -  refused: ")


def test_the_command_says_so_in_lines_and_with_its_exit_code(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerhess.cli.lines.width_of", lambda stream: 80)
    state = torch.get_rng_state()
    began = time.monotonic()
    assert main(["doctor"]) == 0
    assert time.monotonic() - began < 15.0
    assert torch.equal(torch.get_rng_state(), state)
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines()), text
    for word in (f"torch {torch.__version__}", "numpy ", "devices:  cpu", "1 thread", "convolution", "are right"):
        assert word in text
    monkeypatch.setattr(self_test, "cases", lambda: [of(WrongTwice.apply)])
    assert main(["doctor"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "NOT RIGHT on this machine: made up" in text and "another version of torch" in text


def test_json_has_the_same_and_nothing_else(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    streams = capsys.readouterr()
    report = json.loads(streams.out)
    assert streams.err == "" and report["ok"] is True and report["threads"] == 1
    assert report["versions"]["torch"] and report["devices"][0]["name"] == "cpu" and "pandas" in report["extras"]
    assert {check["name"] for check in report["checks"]} == {
        "least squares, by hand",
        *(c.name for c in self_test.cases()),
    }
    monkeypatch.setattr(self_test, "cases", lambda: [of(WrongOnce.apply)])
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_package_that_is_not_there_is_said_to_be_missing() -> None:
    assert doctor.version_of("no-such-package-at-all") is None
    report = doctor.surroundings() | {"extras": {"pandas": "2.0", "lightning": None}}
    assert "pandas 2.0; not here: lightning" in doctor.heading(report)
