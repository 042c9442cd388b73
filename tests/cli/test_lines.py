"""What a terminal of 80 columns gets: nothing wider, errors of four lines, no colours where these are not wanted."""

from __future__ import annotations

import io
import operator
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Capture, on_terminal, seen, workplace
from layerhess.cli import lines, main
from layerhess.errors import InputError

TEXTS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=500)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    with workplace(tmp_path, monkeypatch) as folder:
        yield folder


@given(TEXTS, TEXTS, TEXTS, st.integers(60, 200))
def test_an_error_has_four_lines_at_most_and_says_where_it_was_cut(what: str, where: str, way: str, width: int) -> None:
    error = InputError(what or "x", where=where, what_to_do=way)
    told = lines.fitted(error.within, width)
    shown = told.split("\n")
    assert len(shown) <= 4 and all(len(line) <= width for line in shown)
    whole = " ".join(lines.fitted(error.within, None).split())
    assert "\n" not in whole
    if len(textwrap.wrap(whole, width, break_on_hyphens=False)) <= 4 and " (...)" not in whole:
        assert told.replace("\n", " ").replace(" ", "") == whole.replace(" ", "")


def test_what_to_do_survives_the_cutting() -> None:
    error = InputError("a very long story " * 30, where="here", what_to_do="do this")
    told = lines.fitted(error.within, 80)
    assert told.endswith("(...). Where: here. What to do: do this.") or "What to do: do" in told.replace("\n", " ")
    assert " (...)" in told.replace("\n", " ")


def test_a_sentence_with_a_path_keeps_the_path() -> None:
    path = "/home/someone/" + "deep/" * 30 + "file"
    assert path in lines.wrapped(f"Saved in {path}; the report is there", 80).replace("\n", " ").split(";")[0]
    assert lines.wrapped("as it is, however long " * 9, None) == "as it is, however long " * 9


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_width_is_the_terminals_or_that_asked_for_and_a_pipe_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert lines.width_of(Terminal()) == 72
    assert lines.width_of(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert lines.width_of(Terminal()) == lines.WIDTH


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"], ["nope"], ["analyz"], ["analyze", "mine:make", "--nope"], ["analyze", "mine:make", "--top", "x"],
        ["analyze", "mine:make", "--threads", "0"], ["analyze", "mine:make", "more"], ["report"],
        ["analyze", "mine:wants"], ["analyze", "mine:bad_shapes"], ["analyze", "mine:make", "--blocks", "x" * 300],
        ["analyze", "mine:make", "--" + "long" * 100], ["estimate", "mine:nothing"], ["report", "no/such/folder"],
        ["demo", "--threads", "none"], ["doctor", "--nope"], ["template", "more"],
    ],
)  # fmt: skip
def test_no_error_has_more_than_four_lines_of_80_columns(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("layerhess.cli.exit_codes.width_of", lambda stream: 80)
    assert main(arguments) == 2
    streams = capsys.readouterr()
    told = streams.err.rstrip("\n").split("\n")
    assert "Saved in" not in streams.out and len(told) <= 4 and all(len(line) <= 80 for line in told), streams.err
    assert "layerhess: " in streams.err and "What to do:" in " ".join(told)


def test_a_bug_names_its_log_within_four_lines(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerhess.cli.exit_codes.width_of", lambda stream: 80)
    monkeypatch.setattr("layerhess.cli.app.arguments_of", operator.methodcaller("no_such_method" * 40))
    assert main(["analyze", "mine:make"]) == 3
    told = capsys.readouterr().err
    assert len(told.rstrip("\n").split("\n")) <= 4
    log = re.search(r"details are in (\S+\.log)", told.replace("\n", " "))
    assert log and "no_such_methodno_such_method" in Path(log[1]).read_text()
    Path(log[1]).unlink()


def test_a_terminal_of_80_columns_is_not_overrun(here: Path) -> None:
    code, text = on_terminal("analyze", "mine.py:make", "--all", "--learning-rate", "0.1", "--out", "run", cwd=here)
    assert code == 0 and "\x1b[1" in text, text
    shown = [line for line in seen(text) if str(here) not in line]  # a path is not divided
    assert all(len(line) <= 80 for line in shown), text
    whole = " ".join(text.split())
    assert "Everything converged" in whole and "lambda_max" in whole and "the learning rate" in whole.lower()


def test_no_color_is_honoured_in_a_terminal(here: Path) -> None:
    code, text = on_terminal("analyze", "mine.py:make", "--out", "run", cwd=here, NO_COLOR="1")
    assert code == 0 and "Everything converged" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)


def test_an_error_in_a_terminal_has_four_lines(here: Path) -> None:
    code, text = on_terminal("analyze", "mine:wants", cwd=here)
    assert code == 2 and len(text.rstrip("\n").split("\n")) <= 4 and all(len(line) <= 80 for line in text.split("\n"))
