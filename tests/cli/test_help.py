"""Help that can be read: the common options first, the others in groups, examples that run, completion."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ENVIRONMENT, Capture, quick_report, workplace
from layerhess.cli import app, main, options

COMMANDS = ("analyze", "estimate", "plan", "compare", "report", "demo", "doctor", "template")


HERE = {  # what the examples of `plan` name, and what there is in the tests' folder
    "'layers.*'": "'2.*'",
    "head.weight": "0.weight",
    "q.weight,k": "0.weight,2",
    "accuracy": "mine.py:score",
    "mine.py:test": "mine.py:make",
    "3.5MB": "40B",
    "2MB": "1kB",
    "group:32": "tensor",
    "4bit": "8bit --no-curvature",
    "5bit": "8bit",
    "torchao=torchao.json": "nncf=nncf.json",  # the model there is one of float64
}


def told(capsys: Capture, *arguments: str) -> str:
    assert main([*arguments, "--help"]) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    return streams.out


def groups(text: str) -> dict[str, list[str]]:
    """Heading -> the flags under it."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if re.match(r"\S.*:$", line):
            heading = line[:-1]
        elif flag := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            found.setdefault(heading, []).append(flag[1])
    return found


@pytest.mark.parametrize("columns", ["60", "80", "200"])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_the_terminal_and_ends_with_examples(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = told(capsys, *command)
    prose, examples = text.split("\nExamples:\n")
    assert all(len(line) <= min(int(columns), 80) for line in prose.splitlines()), text
    assert all(len(line) <= 80 and line.startswith("  layerhess") for line in examples.splitlines())
    assert "\x1b" not in text and "\N{NO-BREAK SPACE}" not in text


def test_the_common_ten_come_first_and_every_option_has_its_group(capsys: Capture) -> None:
    found = groups(told(capsys, "analyze"))
    assert found["Options"] == [
        "--blocks", "--operator", "--top", "--bottom", "--full", "--all", "--examples", "--device", "--out", "--json",
        "--help",
    ]  # fmt: skip
    assert list(found) == [
        "Options", options.ESTIMATES, options.EXACTNESS, options.ROOM, options.SUBJECT, options.RUNNING,
    ]  # fmt: skip
    assert max(map(len, found.values())) <= 11
    flags = {flag for group in found.values() for flag in group}
    assert len(flags) == len(inspect.signature(app.analyze).parameters)  # --help for FACTORY
    assert set(groups(told(capsys, "estimate"))) == {*found, options.COST}


def test_a_plan_is_asked_for_by_ten_common_options_and_the_others_in_groups(capsys: Capture) -> None:
    found = groups(told(capsys, "plan"))
    assert found["Options"] == [
        "--bits", "--budget", "--sparsity", "--metric", "--held-out", "--examples", "--device", "--out", "--json",
        "--help",
    ]  # fmt: skip
    assert list(found) == [
        "Options", options.CHOICES, options.JUDGED, options.ROOM, options.SUBJECT, options.RUNNING,
    ]  # fmt: skip
    flags = {flag for group in found.values() for flag in group}
    assert len(flags) == len(inspect.signature(app.plan).parameters)  # --help for FACTORY


def test_a_default_is_not_divided_between_lines(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = told(capsys, "analyze")
    for shown in ("[default: 1]", "[default: 0.001]", "[default: lanczos]", "[default: parameter]"):
        assert any(shown in line for line in text.splitlines()), shown


def test_without_a_command_there_is_help_and_version_is_one_line(capsys: Capture) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert not line.endswith("..."), line
    assert "Examples:" in text and "--install-completion" in text
    assert main(["--version"]) == 0
    assert re.fullmatch(r"layerhess \d+\.\d+\S*\n", capsys.readouterr().out)


def test_the_examples_are_commands_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    quick_report(monkeypatch)
    with workplace(tmp_path, monkeypatch):
        made = {"head": "--blocks head='2.*' --blocks body='0.*'"}
        for command in ("analyze", "estimate"):
            for line in app.EXAMPLES[command].strip().splitlines():
                line = line.replace("--blocks head='head.*' --blocks body='layers.*'", made["head"])
                line = line.replace("package.module", "package.inner").split(" | ")[0].replace("--top 5", "--top 2")
                assert main(shlex.split(line)[1:]) == 0, line
        for line in app.EXAMPLES["plan"].strip().splitlines():
            for shown, here in HERE.items():
                line = line.replace(shown, here)
            assert main(shlex.split(line)[1:]) == 0, line
    for line in app.EXAMPLES[""].strip().splitlines():
        assert line.split()[1] in COMMANDS


def completion(words: str, shell: str = "bash") -> dict[str, str]:
    """What a shell sets when it asks how the line goes on."""
    asked = {"_LAYERHESS_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return asked | {"_TYPER_COMPLETE_ARGS": words}


def test_a_shell_completes_commands_options_and_values(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(words: str, shell: str = "bash") -> list[str]:
        for name, value in completion(words, shell).items():
            monkeypatch.setenv(name, value)
        main([])
        return capsys.readouterr().out.split()

    assert set(completed("layerhess ")) == set(COMMANDS)
    assert completed("layerhess analyze --trace") == ["--trace", "--trace-tol", "--trace-method", "--traceback"]
    assert completed("layerhess analyze mine.py:make --operator g") == ["gauss_newton"]
    assert completed("layerhess analyze mine.py:make --path fa") == ["factors"]
    assert completed("layerhess plan mine.py:make --couplings h") == ["hessian"]
    assert "doctor" in " ".join(completed("layerhess do", "zsh"))


def test_the_process_itself_completes_and_prints_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "layerhess"], capture_output=True, text=True,
        env=ENVIRONMENT | completion("layerhess tem"), timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["template"], "")


def test_the_script_for_a_shell_is_shown(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert main(["--show-completion", "bash"]) == 0
    text = capsys.readouterr().out
    assert "_LAYERHESS_COMPLETE=complete_bash" in text
    assert "complete -o default -F _layerhess_completion layerhess" in text
