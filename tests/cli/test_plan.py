"""``layerhess plan``: a table, a folder, exit codes, and sentences for what cannot be used."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fabricated
import layerhess as lh
import plans_by_hand
from commands import ENVIRONMENT, Capture, on_terminal, quick_report, refusal, seen, workplace
from layerhess.cli import main
from layerhess.results import plan_file
from layerhess.results.options import Prune, Quantize
from layerhess.show.plan import page

QUICK = ("--no-curvature", "--no-verify")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    quick_report(monkeypatch)
    with workplace(tmp_path, monkeypatch) as folder:
        yield folder


def test_a_plan_is_printed_saved_and_can_be_loaded(here: Path, capsys: Capture) -> None:
    assert main(["plan", "mine.py:make", "--budget", "6bit", "--out", "plan"]) == 0
    out = capsys.readouterr().out
    found = lh.load_plan(here / "plan")
    assert set(found.choice) == {"0.weight", "2.weight"}
    assert found.mean_bits <= 6.0
    lines = [line.split() for line in out.splitlines()]
    assert all(any(line[:2] == [name, option.name] for line in lines) for name, option in found.choice.items())
    assert max(map(len, out.split("\nSaved in")[0].splitlines())) <= 80
    assert f"Saved in {here / 'plan'}" in out
    assert "<html" in (here / "plan" / "report.html").read_text()


def test_json_is_all_that_is_on_stdout(here: Path, capsys: Capture) -> None:
    assert main(["plan", "mine.py:make", "--json", "--out", "plan", *QUICK]) == 0
    streams = capsys.readouterr()
    assert streams.out == (here / "plan" / "plan.json").read_text()
    assert json.loads(streams.out)["format"] == "layerhess plan"
    assert "printed by the factory" in streams.err


def test_without_out_it_goes_where_analyses_go(here: Path, capsys: Capture) -> None:
    assert main(["plan", "mine.py:make", *QUICK, "-q"]) == 0
    (folder,) = (here / "layerhess-results").iterdir()
    assert re.fullmatch(r"mine-make-plan-\d{8}-\d{6}", folder.name)
    assert plan_file.is_plan(folder)
    assert capsys.readouterr().err == ""


def test_what_is_asked_for_reaches_the_plan(here: Path, capsys: Capture) -> None:
    asked = [
        "--bits", "4,8", "--sparsity", "0.5", "--granularity", "tensor", "--asymmetric", "--scale", "mse",
        "--budget", "bits=20,increase=10", "--pin", "2.weight=8", "--allow", "0.*=4,8,0.5", "--couplings", "none",
        "--seed", "3",
    ]  # fmt: skip
    assert main(["plan", "mine.py:make", *asked, *QUICK, "--out", "plan"]) == 0
    capsys.readouterr()
    found = lh.load_plan(here / "plan")
    own = [Quantize(bits, "tensor", symmetric=False, scale="mse") for bits in (4, 8)]
    assert set(found.options) == {*own, Prune(0.5)}
    assert found.choice["2.weight"] == own[1]
    assert (found.couplings, found.settings["seed"]) == ("none", 3)
    assert "20" in found.budget and "10" in found.budget


def test_tied_layers_take_the_same_and_held_out_data_are_judged(here: Path, capsys: Capture) -> None:
    asked = ["--tie", "0.weight,2.weight", "--metric", "mine.py:score", "--held-out", "mine.py:make"]
    assert main(["plan", "mine.py:make", *asked, "--no-curvature", "--budget", "5bit", "--out", "plan"]) == 0
    text = capsys.readouterr().out
    found = lh.load_plan(here / "plan")
    assert found.choice["0.weight"] == found.choice["2.weight"]
    assert found.metric_name == "score"
    assert found.baselines["uniform w4"].held_out is not None
    # The data of the held-out factory's objective are the calibration data here.
    assert found.baselines["uniform w4"].held_out.value == pytest.approx(found.baselines["uniform w4"].measured)
    assert "Score: -" in text


@pytest.mark.parametrize(
    ("metric", "why"),
    [("broken_score", "raised ValueError: no such class"), ("nan_score", "is NaN or infinite")],
)
def test_a_metric_that_fails_leaves_the_plan_and_the_exit_code_is_one(
    here: Path, capsys: Capture, metric: str, why: str
) -> None:
    asked = ["--metric", f"mine.py:{metric}", "--no-curvature", "--out", "plan"]
    assert main(["plan", "mine.py:make", *asked]) == 1
    assert why in " ".join(capsys.readouterr().out.split())
    assert plan_file.is_plan(here / "plan")


def test_other_libraries_files_are_written_and_a_failure_is_a_note_and_exit_code_one(
    here: Path, capsys: Capture
) -> None:
    asked = ["plan", "mine.py:make", *QUICK, "--out", "plan", "-q"]
    assert main([*asked, "--export", "nncf=nncf.json"]) == 0
    assert json.loads((here / "nncf.json").read_text())
    capsys.readouterr()
    assert main([*asked, "--export", "nncf=mine.py/nncf.json", "--export", "nncf=again.json"]) == 1
    assert "not exported to nncf" in capsys.readouterr().err
    assert (here / "again.json").exists()


def test_a_terminal_sees_how_far_it_is(here: Path) -> None:
    code, told = on_terminal("plan", "mine.py:make", *QUICK, "--out", "plan", cwd=here)
    assert code == 0
    assert "passes" in told
    lines = seen(told)
    assert any(line.startswith("0.weight") for line in lines)
    assert max(map(len, lines[:-2])) <= 80 or any("Saved in" in line for line in lines)


# -- what cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--budget", "1bit"], "no plan keeps to 1 bit a weight: the least that can be reached is 2 bits"),
        (["--budget", "much"], "unknown budget 'much'"),
        (["--budget", "bits=x"], "the budget has 'bits=x'"),
        (["--bits", "4,x"], "'x' is neither a number of bits nor a sparsity"),
        (["--bits", "4,,8"], "has an empty part"),
        (["--bits", "17"], "cannot be quantised to 17 bits"),
        (["--bits", "none"], "no option is given"),
        (["--sparsity", "2"], "is not below 1"),
        (["--granularity", "row"], "unknown granularity 'row'"),
        (["--scale", "max"], "unknown scale 'max'"),
        (["--pin", "0.weight"], "is not NAME=BITS"),
        (["--pin", "nowhere=4"], "no planned weight is called 'nowhere'"),
        (["--pin", "0.weight=4", "--pin", "0.weight=8"], "given twice"),
        (["--allow", "0.*="], "is not GLOB=2,4"),
        (["--tie", "0.weight,"], "has an empty part"),
        (["--criterion", "taste"], "criterion"),
        (["--couplings", "all"], "couplings"),
        (["--metric", "f1"], "there is no metric 'f1'"),
        (["--metric", "mine.py:nowhere"], "has no function named nowhere"),
        (["--held-out", "mine.py:nothing"], "returned None"),
        (["--held-out", "mine.py:wants"], "cannot be called without arguments"),
        (["--export", "onnx=a"], "with a known kind"),
        (["--export", "nncf"], "is not KIND=FILE"),
        (["--resume"], "--resume needs the folder"),
        (["--layers", "depth:x"], "depth"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(
    here: Path, capsys: Capture, asked: list[str], told: str
) -> None:
    assert told in refusal(capsys, "plan", "mine.py:make", "--no-curvature", *asked)
    assert not list(here.glob("layerhess-results/mine*"))


def test_an_analysis_is_not_replaced_by_a_plan_and_a_plan_not_by_an_analysis(here: Path, capsys: Capture) -> None:
    fabricated.analysis().save(here / "run")
    plan_file.save(plans_by_hand.plan(random=1), here / "plan", lambda plan: "<p>page</p>")
    assert "holds an analysis, not a plan" in refusal(capsys, "plan", "mine.py:make", "--out", "run")
    assert "holds a plan, not an analysis" in refusal(capsys, "analyze", "mine.py:make", "--out", "plan")
    assert "holds a plan, not an analysis" in refusal(capsys, "compare", "run", "plan")
    with pytest.raises(lh.InputError, match="holds a plan, whose page the monitor would replace"):
        lh.Monitor(lh.Objective(*_linear()), out=here / "plan")


def _linear() -> Any:
    import torch

    return torch.nn.Linear(2, 2), (torch.zeros(3, 2), torch.zeros(3, 2)), torch.nn.MSELoss()


def test_a_plan_that_cannot_be_saved_is_shown_and_saved_elsewhere(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerhess.results import atomic_folder

    real = atomic_folder.replacing

    def full(folder: Path, ours: tuple[str, ...]) -> Any:
        if folder == here / "plan":
            raise OSError(28, "No space left on device")
        return real(folder, ours)

    monkeypatch.setattr(atomic_folder, "replacing", full)
    assert main(["plan", "mine.py:make", *QUICK, "--out", "plan"]) == 2
    streams = capsys.readouterr()
    assert "the disk is full" in streams.err and "0.weight" in streams.err
    place = Path(re.search(r"nothing is lost: the plan is in (\S+?)\.?\n", streams.err)[1])  # type: ignore[index]
    assert set(lh.load_plan(place).choice) == {"0.weight", "2.weight"}


def test_ctrl_c_ends_with_130_and_the_run_can_go_on(here: Path, capsys: Capture) -> None:
    asked = ["plan", "mine.py:slow", *QUICK, "--out", "plan"]
    command = [sys.executable, "-m", "layerhess", *asked]
    process = subprocess.Popen(command, cwd=here, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    rows, deadline = here / ".plan.journal", time.monotonic() + 60
    while time.monotonic() < deadline and not (rows.exists() and rows.stat().st_size > 2000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "resume goes on from there" in told and str(rows) in told
    assert not (here / "plan").exists()
    assert main([*asked, "--resume"]) == 0
    assert plan_file.is_plan(here / "plan") and not rows.exists()
    assert "Saved in" in capsys.readouterr().out


# -- reports -----------------------------------------------------------------------------------------------------------


def test_report_makes_the_page_of_a_plan_anew(here: Path, capsys: Capture) -> None:
    made = plans_by_hand.plan(random=2)
    folder = plan_file.save(made, here / "plan", lambda plan: "<p>old</p>")
    assert main(["report", "plan"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text() == page.as_html(made)


def test_report_says_what_is_wrong_with_a_damaged_plan(here: Path, capsys: Capture) -> None:
    folder = plan_file.save(plans_by_hand.plan(random=1), here / "plan", lambda plan: "<p>old</p>")
    (folder / "plan.json").write_text("{")
    told = refusal(capsys, "report", "plan")
    assert "this saved plan cannot be read" in told and "plan.json" in told
    (folder / "plan.json").unlink()
    assert "holds no analysis.json" in refusal(capsys, "report", "plan")


def test_report_shows_a_plan_inside_an_analysis_if_it_is_of_the_same_loss(tmp_path: Path, capsys: Capture) -> None:
    analysis = fabricated.analysis()
    run = analysis.save(tmp_path / "run")
    for loss, there in ((analysis.loss, True), (2.0 * analysis.loss, False)):
        plan_file.save(plans_by_hand.plan(random=1, loss=loss), run / "plan", lambda plan: "<p>page</p>")
        assert main(["report", str(run)]) == 0
        assert ("Plan: which layer gets" in (run / "report.html").read_text()) is there
    analysis.save(run)
    assert plan_file.is_plan(run / "plan"), "an analysis that is saved again keeps what lies in its folder"
