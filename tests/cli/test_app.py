"""The command line: exit codes, what goes to which stream, and what each command leaves behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fabricated
import layerhess as lh
from commands import ENVIRONMENT, Capture, quick_report, refusal, workplace
from layerhess.cli import main
from layerhess.cli.app import TEMPLATE
from layerhess.results import json_format, store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with workplace(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(word in request.node.name for word in ("report", "prints_a_table", "demo")):
        quick_report(monkeypatch)


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "layerhess", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_analyze_prints_a_table_saves_a_folder_and_exits_with_zero(here: Path, capsys: Capture) -> None:
    assert main(["analyze", "mine.py:make", "--bottom", "1", "--out", "run"]) == 0
    streams = capsys.readouterr()
    analysis = lh.load(here / "run")
    assert analysis.converged and analysis.full is not None and next(iter(analysis.blocks)) == "0.weight"
    assert str(analysis) in streams.out
    assert f"Saved in {here / 'run'}" in streams.out and "report.html" in streams.out
    assert re.search(r"one gradient takes .*; expect ", streams.err)
    assert str(here / "run") in streams.err, "where the result will be is said before the work"
    assert (here / "run" / "report.html").stat().st_size > 10_000


def test_estimate_says_what_analyze_would_cost_and_writes_nothing(here: Path, capsys: Capture) -> None:
    before = sorted(here.rglob("*"))
    assert main(["estimate", "mine.py:make", "--blocks", "module", "--world", "2", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passes"] > 0 and found["seconds"] > 0 and found["peak_bytes"] > 0 and found["world"] == 2
    assert main(["estimate", "mine.py:make", "--device-memory", "80GiB"]) == 0
    assert "which fits" in capsys.readouterr().out
    of_analyze = ["--out", "elsewhere", "--resume", "--learning-rate", "0.1", "--max-passes", "3", "--time-limit", "60"]
    assert main(["estimate", "mine.py:make", "--json", "-q", *of_analyze]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["passes"] <= 3
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == before
    assert main(["estimate", "mine.py:make", "--exclude", "much"]) == 2
    assert "--exclude" in capsys.readouterr().err


def test_options_of_the_estimates_reach_the_analysis(here: Path) -> None:
    options = ["--trace-tol", "0.3", "--trace-method", "xtrace", "--density-steps", "4", "--density-probes", "2"]
    options += ["--density-axis", "log"]
    assert main(["analyze", "mine.py:make", *options, "--coupling-probes", "3", "--out", "run"]) == 0
    settings = lh.load(here / "run").settings
    assert settings["trace"]["rel"] == 0.3 and settings["trace"]["method"] == "xtrace"
    assert settings["density"]["steps"] == 4 and settings["density"]["probes"] == 2
    assert settings["density"]["axis"] == "log"
    assert settings["coupling"] == {"probes": 3} and settings["diagonal"] is False


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--density-steps", "1", "at least 2 Lanczos steps"),
        ("--density-steps", "0", "use --density-steps 30"),
        ("--trace-tol", "0", "--trace-tol is 0"),
        ("--trace-method", "magic", "unknown method"),
        ("--coupling-probes", "1", "--coupling-probes is 1"),
        ("--density-probes", "0", "--density-probes is 0"),
        ("--density-axis", "cubic", "there is no axis 'cubic'"),
        ("--diagonal-probes", "1", "--diagonal-probes is 1"),
    ],
)
def test_options_of_the_estimates_that_make_no_sense(
    here: Path, capsys: Capture, option: str, value: str, word: str
) -> None:
    assert word in refusal(capsys, "analyze", "mine.py:make", option, value)


def test_a_subset_is_given_sampling_errors_only_where_there_can_be_any(here: Path) -> None:
    subset = ["analyze", "mine.py:make", "--examples", "8", "--top", "0"]
    assert main([*subset, "--diagonal", "--out", "run"]) == 0
    assert lh.load(here / "run").settings["sampling"] is False
    assert main([*subset, "--trace-tol", "0.1", "--out", "run"]) == 0
    assert lh.load(here / "run").settings["sampling"] is True


def test_json_is_the_only_thing_on_stdout(here: Path) -> None:
    (here / "loud.py").write_text(
        "import os, mine\nprint('at import')\nos.system('echo from a child process')\n"
        "def make():\n    os.write(1, b'straight to the descriptor')\n    return mine.make()\n"
    )
    done = shell("analyze", "loud:make", "--json", "--out", "run", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (here / "run" / "analysis.json").read_text()
    assert json.loads(done.stdout)["converged"] is True
    for sentence in ("at import", "from a child", "straight to", "printed by", "one gradient"):
        assert sentence in done.stderr


def test_json_of_a_refusal_leaves_stdout_empty(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "mine:raises", "--json"]) == 2
    assert capfd.readouterr().out == ""


def test_quiet_leaves_stderr_empty(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "mine:make", "--quiet", "--json", "--out", "run"]) == 0
    streams = capfd.readouterr()
    assert json.loads(streams.out)["schema"] == json_format.SCHEMA
    assert streams.err.strip() == "printed by the factory"


def test_what_did_not_converge_gives_one_and_a_result(here: Path, capsys: Capture) -> None:
    code = main(["analyze", "mine:slow", "--max-passes", "2", "--out", "run", "--top", "2", "--no-full"])
    streams = capsys.readouterr()
    assert code == 1 and "NOT CONVERGED" in streams.out
    assert not lh.load(here / "run").converged


@pytest.mark.parametrize(("given", "kept"), [((), 0.05), (("--exclude", "none"), None), (("--exclude", "0.2"), 0.2)])
def test_what_is_excluded_is_a_flag(here: Path, given: tuple[str, ...], kept: float | None) -> None:
    assert main(["analyze", "mine:make", "-q", "--out", "run", "--copies", "unchecked", *given]) == 0
    settings = lh.load(here / "run").settings
    assert (settings["exclude"], settings["copies"]) == (kept, "unchecked")


@pytest.mark.parametrize(("flag", "value"), [("--exclude", "much"), ("--exclude", "0"), ("--copies", "some")])
def test_an_unusable_exclusion_is_refused(here: Path, capsys: Capture, flag: str, value: str) -> None:
    assert main(["analyze", "mine:make", "-q", "--out", "run", flag, value]) == 2
    assert f"{flag.strip('-')} is" in capsys.readouterr().err


def test_the_default_folder_is_new_each_time_and_named(here: Path, capsys: Capture) -> None:
    assert main(["analyze", "package.inner:make", "-q"]) == 0
    (folder,) = (here / "layerhess-results").iterdir()
    assert re.fullmatch(r"package\.inner-make-\d{8}-\d{6}", folder.name)
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize(
    "target", ["mine:make", "mine.py:make", "./mine.py:make", "mine:Holder.make", "package.inner:make"]
)
def test_all_spellings_of_a_factory_work(here: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerhess.cli.factory import load_objective

    assert load_objective(target).numel == 26
    monkeypatch.chdir("/")
    assert load_objective(f"{here}/mine.py:make").numel == 26


def test_options_reach_the_analysis(here: Path, capsys: Capture) -> None:
    arguments = (
        "analyze mine:make -q --out run --blocks first=0.* --blocks second=2.weight --blocks second=2.bias --top 2 "
        "--bottom 1 --no-full --tol 1e-2 --seed 3 --examples 7 --examples-seed 1 --batch-size 3 --eval --threads 1 "
        "--device cpu --max-passes 77 --time-limit 1000 --skip-failed --method lanczos --operator hessian"
    )
    assert main(arguments.split()) == 0
    analysis = lh.load(here / "run")
    assert list(analysis.blocks) == ["first", "second"] and analysis.full is None
    assert analysis.examples == 7 and analysis.batches == 3
    expected = {
        "top": 2, "bottom": 1, "full": False, "tol": 1e-2, "seed": 3, "batch_size": 3, "mode": "eval",
        "max_passes": 77, "time_limit": 1000.0, "skip_failed": True, "method": "lanczos", "operator": "hessian",
        "device": "cpu", "blocks": {"first": ["0.*"], "second": ["2.weight", "2.bias"]},
    }  # fmt: skip
    assert {key: analysis.settings[key] for key in expected} == expected


def test_the_same_command_gives_the_same_numbers(here: Path) -> None:
    for name in ("a", "b"):
        assert main(["analyze", "mine:make", "-q", "--out", name]) == 0
    a, b = (json.loads((here / name / "analysis.json").read_text()) for name in ("a", "b"))
    assert a["blocks"] == b["blocks"] and a["full"] == b["full"]


# -- our bugs, interrupts, pipes ---------------------------------------------------------------------------------------


def test_a_bug_of_ours_exits_with_three_and_names_its_log(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.atomic_folder, "probing", None)
    assert main(["analyze", "mine:make", "--out", "run"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" not in err
    log = re.search(r"The details are in (\S+\.log)", err)
    assert log
    text = Path(log[1]).read_text()
    assert "Traceback" in text and "TypeError" in text and "torch" in text
    Path(log[1]).unlink()


def interrupted(here: Path, signum: signal.Signals, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "layerhess", "analyze", "mine:slow", *arguments]
    process = subprocess.Popen(
        command, cwd=here, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "expect" in line:
            break
    journal, until = here / ".run.journal", time.monotonic() + 60
    while not (journal.exists() and b'"kind": "pass"' in journal.read_bytes()) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, "".join(said) + err


@pytest.mark.usefixtures("ctrl_c_raises")  # the command inherits what Ctrl-C means
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_leaves_a_partial_result_and_says_where(
    here: Path, signum: signal.Signals, exit_code: int
) -> None:
    code, out, err = interrupted(here, signum, "--out", "run", "--tol", "1e-6", "--top", "3", "--bottom", "3")
    assert code == exit_code and out == "" and "Traceback" not in err
    assert f"the partial result is in {here / 'run'}, and resume goes on from there" in err
    analysis = lh.load(here / "run")
    assert analysis.partial and not analysis.converged
    report = (here / "run" / "report.html").read_text()
    assert "NOT CONVERGED" in report and "interrupted" in report


def test_a_run_that_stopped_goes_on_with_resume(here: Path, capsys: Capture) -> None:
    (here / "wider.py").write_text(
        "import torch, mine, layerhess as lh\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(3, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))\n"
        "    return lh.Objective(model, mine.data(), torch.nn.MSELoss())\n"
    )
    command = ["analyze", "wider:make", "--out", "run", "--blocks", "module", "--top", "2", "--no-full"]
    assert main([*command, "--max-passes", "1"]) == 1 and (here / ".run.journal").exists()
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert "resumed: " in capsys.readouterr().err and not (here / ".run.journal").exists()
    before = (here / "run" / "analysis.json").read_bytes()
    assert main([*command, "--resume", "--json"]) == 0
    assert capsys.readouterr().out.encode() == before == (here / "run" / "analysis.json").read_bytes()
    assert "seed was 0 and is 1" in refusal(capsys, *command, "--resume", "--seed", "1")
    assert "--resume needs the folder" in refusal(capsys, "analyze", "mine:make", "--resume")


def test_ctrl_c_in_the_factory_says_that_nothing_was_written(here: Path, capsys: Capture) -> None:
    (here / "stop.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    assert main(["analyze", "stop:make", "--out", "run"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (here / "run").exists()


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    line = f"{sys.executable} -m layerhess analyze mine:make -q --json --out run | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=here, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert lh.load(here / "run").converged


# -- the other commands ------------------------------------------------------------------------------------------------


def test_report_rebuilds_the_page_and_prints_its_path(here: Path, capsys: Capture) -> None:
    folder = fabricated.analysis(bad=True).save(here / "run")
    (folder / "report.html").unlink()
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "NOT CONVERGED" in (folder / "report.html").read_text()


@pytest.mark.parametrize("damage", ["missing", "corrupted", "newer", "no analysis"])
def test_report_refuses_what_is_no_analysis(here: Path, capsys: Capture, damage: str) -> None:
    if damage != "missing":
        folder = fabricated.analysis().save(here / "run")
        text = (folder / "analysis.json").read_text()
        newer = text.replace(f'"schema": {json_format.SCHEMA}', '"schema": 99')
        changed = {"corrupted": text[:500], "newer": newer, "no analysis": "{}"}
        (folder / "analysis.json").write_text(changed[damage])
    refusal(capsys, "report", "run")


def test_the_template_is_ten_lines_that_run(here: Path, capsys: Capture) -> None:
    assert main(["template"]) == 0
    text = capsys.readouterr().out
    assert text == TEMPLATE and len([line for line in text.splitlines() if line.strip()]) <= 10
    (here / "factory.py").write_text(text)
    assert main(["analyze", "factory.py:make", "-q", "--out", "run"]) == 0


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("analyze", "report", "demo", "template"))
    assert main(["analyze", "--help"]) == 0
    options = capsys.readouterr().out
    for option in ("--blocks", "--top", "--bottom", "--tol", "--out", "--json", "--device", "--threads", "--examples",
                   "--eval", "--checkpoint", "--quiet", "--no-full", "--batch-size", "--time-limit"):  # fmt: skip
        assert option in options
    assert main(["--version"]) == 0
    assert re.fullmatch(r"layerhess \d+\.\d+.*\n", capsys.readouterr().out)


def test_the_defaults_are_those_of_the_python_call() -> None:
    import inspect

    from layerhess.analysis.analyze import analyze
    from layerhess.cli import app

    python = inspect.signature(analyze).parameters
    shell = inspect.signature(app.analyze).parameters
    for name in (
        "operator",
        "top",
        "bottom",
        "full",
        "tol",
        "seed",
        "method",
        "max_passes",
        "time_limit",
        "skip_failed",
    ):
        assert shell[name].default == python[name].default, name


def test_the_demo_analyses_what_it_trained(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small problem in place of the digits; the real one runs in `make demo`."""
    from layerhess.cli import demo

    def build(seed: int = 0, report: Callable[[str], None] | None = None) -> demo.DemoProblem:
        assert report is not None
        report("trained")
        model = torch.nn.Linear(3, 2).double()
        batches = [(torch.randn(8, 3).double(), torch.randint(2, (8,)))]
        return demo.DemoProblem(model, batches, 1.0, 1.0, 0.1, {})

    monkeypatch.setattr("layerhess.cli.app.build_demo", build)
    assert main(["demo"]) == 0
    streams = capsys.readouterr()
    assert "trained" in streams.err and "Everything converged" in streams.out
    assert lh.load(here / "demo-output").converged
    assert set(lh.load_plan(here / "demo-output" / "plan").choice) == {"weight"}


def test_letters_that_an_encoding_lacks_do_not_end_a_command(here: Path) -> None:
    """Windows gives a file or a pipe an encoding of its own, without λ, ≤ and others."""
    command = [sys.executable, "-m", "layerhess", "analyze", "mine.py:make", "--all", "--out", "out"]
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and "bug" not in done.stderr, done.stderr
    assert "\\xb1" in done.stdout, "the sign of plus or minus"
