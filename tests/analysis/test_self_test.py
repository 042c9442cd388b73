"""The self-test: what is right, what is known to be wrong and refused, and what must not be trusted."""

from __future__ import annotations

import pytest
import torch

from faulty_functions import Once
from layerhess.analysis import self_test
from layerhess.analysis.self_test import REFUSED, RIGHT, Finding
from wrong_layers import WrongOnce, WrongTwice, of

CPU = torch.device("cpu")


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
        "embedding", "weight_norm", "instance norm, single", "binary cross entropy", "slopes in the loss",
    }  # fmt: skip
    # torch's own gradient of a hard sigmoid, the reference here, has a sixth of float32 in it
    right = [finding for finding in here if finding.outcome == RIGHT and finding.name != "hard sigmoid"]
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
    monkeypatch.setattr("layerhess.analysis.self_test.verified", lambda *arguments: None)
    blind = self_test.examined(case, CPU)
    assert blind.ok == (blind.outcome == RIGHT) and (blind.ok or "AND NOT NOTICED" in blind.outcome)


def test_a_layer_without_a_second_derivative_is_not_right() -> None:
    found = self_test.examined(of(Once.apply), CPU)
    assert not found.ok and found.outcome == "WRONG, refused by the self-check"
    found = self_test.examined(of(lambda x: torch.cdist(x, x + 1.0)[:, :6]), CPU)
    assert not found.ok and found.outcome.startswith("refused: ") and found.error != found.error
