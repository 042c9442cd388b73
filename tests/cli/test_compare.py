"""``layerhess compare``: what is printed and written, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fabricated
from commands import Capture, quick_report, refusal, workplace
from layerhess.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    quick_report(monkeypatch)
    with workplace(tmp_path, monkeypatch) as folder:
        fabricated.analysis().save(folder / "a")
        fabricated.analysis(loss=0.5).save(folder / "b")
        yield folder


def test_compare_prints_a_table_of_eighty_columns_and_exits_with_zero(here: Path, capsys: Capture) -> None:
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "b against a" in out and "full model" in out
    assert {path.name for path in here.iterdir()} >= {"a", "b"} and not (here / "comparison.json").exists()


def test_json_is_all_that_is_printed(here: Path, capsys: Capture) -> None:
    assert main(["compare", "a", "b", "a", "--json", "--out", "c"]) == 0
    printed = capsys.readouterr().out
    document = json.loads(printed)
    assert document["first"] == "a" and document["second"] == "b" and document["further"][0]["second"] == "a"
    assert document["blocks"]["(full)"]["log_ratio"] == 0.0
    assert (here / "c" / "comparison.json").read_text() == printed
    assert "<html" in (here / "c" / "comparison.html").read_text()


def test_a_comparison_may_be_replaced_and_nothing_else(here: Path, capsys: Capture) -> None:
    assert main(["compare", "a", "b", "--out", "c"]) == 0
    assert "comparison.html" in capsys.readouterr().out
    assert main(["compare", "b", "a", "--out", "c"]) == 0
    assert json.loads((here / "c" / "comparison.json").read_text())["first"] == "b"
    (here / "c" / "thesis.tex").write_text("years of work")
    capsys.readouterr()
    for folder in ("a", "c", "a/analysis.json"):
        refusal(capsys, "compare", "a", "b", "--out", folder)
    assert (here / "a" / "analysis.json").exists() and (here / "c" / "thesis.tex").exists()


def test_what_has_not_converged_makes_the_exit_code_one(here: Path, capsys: Capture) -> None:
    fabricated.analysis(bad=True).save(here / "bad")
    assert main(["compare", "a", "bad"]) == 1
    assert "NOT COMPARED" in capsys.readouterr().out
    assert main(["compare", "bad", "a", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["finished"] is False


def test_bad_input_is_refused_with_a_sentence(here: Path, capsys: Capture) -> None:
    fabricated.one(fabricated.spectrum("other")).save(here / "other")
    (here / "empty").mkdir()
    for folders in (["a"], ["a", "nowhere"], ["a", "empty"], ["a", "a/analysis.json"], ["a", "other"]):
        refusal(capsys, "compare", *folders)
    assert main(["compare"]) == 2
