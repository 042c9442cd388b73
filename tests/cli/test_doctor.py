"""``layerhess doctor``: what it prints, as lines and as JSON, and its exit codes."""

from __future__ import annotations

import json
import time

import pytest
import torch

from commands import Capture
from layerhess.analysis import self_test
from layerhess.analysis.self_test import Finding
from layerhess.cli import doctor, main
from wrong_layers import WrongOnce, WrongTwice, of


def test_the_command_says_so_in_lines_and_with_its_exit_code(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerhess.cli.lines.width_of", lambda stream: 80)
    state = torch.get_rng_state()
    began = time.process_time()
    assert main(["doctor"]) == 0
    assert time.process_time() - began < 15.0
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


def test_a_layer_that_is_refused_has_a_line_without_errors() -> None:
    nothing = float("nan")
    found = Finding("made up", "cpu", "refused: no second derivative", nothing, nothing, False, False)
    assert doctor.line(found).startswith("  made up                    -     -  refused: ")


def test_what_is_known_of_a_version_of_torch_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(self_test, "cases", list)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert main(["doctor"]) == 0
    assert "not checked before on cpu; a first analysis begins with the tests below" in capsys.readouterr().out
    monkeypatch.delattr(torch._C._functorch, "is_functorch_wrapped_tensor")
    assert main(["doctor"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "lacks 1 private name that the library uses; every analysis is refused" in told
    assert "NOT USABLE: torch lacks torch._C._functorch.is_functorch_wrapped_tensor. Install 'torch>=" in told
