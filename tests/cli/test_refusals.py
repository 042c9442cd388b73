"""Bad input on the command line: a sentence that says what, where and what to do, exit code 2, nothing lost."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fabricated
import layerhess as lh
from commands import Capture, quick_report, refusal, workplace, zero_weights
from layerhess.cli import main
from layerhess.cli.user_frames import EXTRAS, describe
from layerhess.errors import InputError, add_note, notes_of
from layerhess.results import store

PROJECT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with workplace(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_loaded(here: Path) -> None:
    weights = zero_weights()
    safetensors.torch.save_file({k: v.double() for k, v in weights.items()}, here / "w.safetensors")
    assert main(["analyze", "mine:make", "-q", "--out", "run", "--checkpoint", "w.safetensors"]) == 0
    norms = {n: s.weight_norm_squared for n, s in lh.load(here / "run").blocks.items()}
    assert norms == {"0.weight": 0.0, "0.bias": 0.0, "2.weight": 0.0, "2.bias": 2.0}


def test_a_checkpoint_that_holds_tied_weights_once_fits(here: Path) -> None:
    safetensors.torch.save_file({"b.weight": torch.eye(3)}, here / "w.safetensors")
    assert main(["analyze", "mine:tied", "-q", "--out", "run", "--checkpoint", "w.safetensors"]) == 0
    assert lh.load(here / "run").blocks["a.weight"].weight_norm_squared == 3.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("2.bias"), r"1 missing \(2\.bias\)"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 that the model does not have \(extra\)"),
        (lambda w: w.update({"2.bias": torch.zeros(3)}), r"2\.bias: \(3,\) in the file, \(2,\) in the model"),
        (lambda w: [w.update({f"module.{k}": w.pop(k)}) for k in list(w)], r"begin with 'module\.'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    here: Path, capsys: Capture, change: Callable[[dict[str, torch.Tensor]], object], match: str
) -> None:
    weights = zero_weights()
    change(weights)
    safetensors.torch.save_file(weights, here / "w.safetensors")
    line = refusal(capsys, "analyze", "mine:make", "--checkpoint", "w.safetensors")
    assert re.search(match, line)


def test_a_pickled_checkpoint_is_refused_unopened(here: Path, capsys: Capture) -> None:
    torch.save({"0.weight": torch.zeros(1)}, here / "w.pt")
    assert "execute code" in refusal(capsys, "analyze", "mine:make", "--checkpoint", "w.pt")
    assert "no file" in refusal(capsys, "analyze", "mine:make", "--checkpoint", "missing.safetensors")


# -- unusable input: a sentence, exit code 2, no traceback -------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "matches"),
    [
        ("mine.py", ["does not say which function"]),
        ("mine.py:", ["does not say which function"]),
        (":make", ["does not say which function"]),
        ("mine:mkae", ["no function named mkae", "perhaps you meant make"]),
        ("mni.py:make", ["does not exist", "mine.py"]),
        ("mnie:make", ["no module named mnie", "mine"]),
        ("package.iner:make", ["no module named package.iner"]),
        ("package:make", ["no function named make"]),
        (".:make", ["no module name"]),
        ("package/:make", ["is a folder"]),
        ("syntax.py:make", ["SyntaxError", "def make(:", "syntax.py:3"]),
        ("syntax:make", ["SyntaxError", "syntax.py:3"]),
        ("imports.py:make", ["needs no_such_package, which is not installed", "imports.py:2"]),
        ("imports:make", ["needs no_such_package, which is not installed", "imports.py:2"]),
        ("fails.py:make", ["ZeroDivisionError", "fails.py:2"]),
        ("mine:unset", ["ModuleNotFoundError: set FOO first", "in unset"]),
        ("mine:raises", ["IndexError: list index out of range", "in raises", "mine.py:"]),
        ("mine:leaves", ["ended the process", "__main__"]),
        ("mine:nothing", ["returned None", "is a return missing"]),
        ("mine:model_only", ["returned a Linear", "return layerhess.Objective"]),
        ("mine:wants", ["without arguments", "'argument'"]),
        ("mine:value", ["is an int, not a function"]),
        ("mine:refused_input", ["empty"]),
        ("mine:loss_leaves", ["ended the process (sys.exit(0))", "in criterion", "mine.py:"]),
        ("mine:bad_loss", ["this loss fails", "in criterion", "mine.py:"]),
        ("mine:lazy_loss", ["the model, the loss or the data needs no_such_package, which is not installed"]),
        ("mine:bad_data", ["row 17"]),
        ("mine:bad_shapes", ["shapes cannot be multiplied", "torch/nn/modules/linear.py"]),
        ("mine:dropout", ["dropout", "eval"]),
    ],
)
def test_a_factory_that_cannot_be_used(here: Path, capsys: Capture, target: str, matches: list[str]) -> None:
    line = refusal(capsys, "analyze", target)
    for match in matches:
        assert match.lower() in line.lower()


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_the_extra_that_brings_a_missing_package_is_named(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    (here / "asks.py").write_text(f"def make():\n    import {package}\n")
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal(capsys, "analyze", "asks.py:make")
    assert f"needs {package}, which is not installed" in line and f"pip install 'layerhess[{extra}]'" in line
    assert "asks.py:2, in make" in line
    assert re.search(rf"^{extra} = .*\b{package.replace('sklearn', 'scikit-learn')}\b", PROJECT, re.MULTILINE)


@pytest.mark.parametrize(
    "options",
    [
        "--blocks nope", "--blocks depth:0", "--blocks a=zzz*", "--blocks a=0.* --blocks b=0.w*", "--blocks =x",
        "--blocks weight --blocks a=0.*", "--operator nope", "--tol 0", "--tol -1",
        "--tol nan", "--top -1", "--top 0 --bottom 0", "--top 1000", "--device nope", "--device cuda:99",
        "--examples 0", "--batch-size 0", "--method nope", "--max-passes 0", "--time-limit 0", "--seed -1",
        "--out mine.py", "--out .", "--out package", "--out mine.py/x",
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used(here: Path, capsys: Capture, options: str) -> None:
    before = sorted(here.rglob("*.*"))
    refusal(capsys, "analyze", "mine:make", *options.split())
    assert [p for p in sorted(here.rglob("*.*")) if p.suffix != ".pyc"] == before


@pytest.mark.parametrize(
    "arguments",
    [["analyze"], ["nope"], ["analyze", "mine:make", "--nope"], ["analyze", "mine:make", "--top", "x"],
     ["analyze", "mine:make", "--threads", "0"], ["analyze", "mine:make", "more"], ["report"]],
)  # fmt: skip
def test_a_wrong_command_line_exits_with_two(here: Path, capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and "Usage" in streams.err


def test_the_traceback_of_the_users_error_is_shown_on_request(here: Path, capsys: Capture) -> None:
    assert main(["analyze", "mine:raises", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "return numbers[3]" in err


def test_a_note_on_an_exception_is_part_of_its_description() -> None:
    class Old:  # as exceptions are in Python 3.10, without add_note
        pass

    error, old = ValueError("wrong"), Old()
    for sentence in ("From batch 0.", "From there."):
        add_note(error, sentence)
        add_note(old, sentence)  # type: ignore[arg-type]
    assert describe(error) == "ValueError: wrong (From batch 0) (From there)"
    assert notes_of(old) == notes_of(error) == ["From batch 0.", "From there."]  # type: ignore[arg-type]


def test_a_full_disk_at_the_end_loses_nothing(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    fabricated.analysis().save(here / "run")
    real = store._write_files

    def full(analysis: Any, page: str, folder: Path) -> None:
        if folder.parent == here:
            raise OSError(28, "No space left on device")
        real(analysis, page, folder)

    monkeypatch.setattr(store, "_write_files", full)
    line = refusal(capsys, "analyze", "mine:make", "--out", "run")
    assert "disk is full" in line
    place = re.search(r"the analysis is in (\S+)\.", line)
    assert place and lh.load(place[1]).converged, "it was saved elsewhere"
    assert lh.load(here / "run").model == "DigitNet", "the previous result is intact"


def test_every_refusal_names_a_place_and_a_way_out() -> None:
    with pytest.raises(InputError) as caught:
        from layerhess.cli.prepare import block_scheme

        block_scheme(["weight", "bias"])
    assert caught.value.where == "--blocks" and caught.value.what_to_do
