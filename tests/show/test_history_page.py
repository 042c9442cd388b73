"""The page of a monitor's curves: what is drawn is what was measured, whatever the training was like."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

import layerhess as lh
from curves_of_a_training import history
from layerhess.analysis.result import rewrite_report
from layerhess.cli import main
from layerhess.results.history import History
from layerhess.results.point import Point, Reading
from layerhess.show.history_page import as_html
from layerhess.show.page.axis import LogAxis
from layerhess.show.page.curves import curves, threshold

NASTY = "</td></script><script>alert(1)</script>"


def corners(path: str) -> np.ndarray:
    return np.array([[float(n) for n in pair.split()] for pair in path.strip("Mz").split("L")])


def test_curves_are_the_values_over_the_steps() -> None:
    made = history()
    drawn = curves(made)
    assert drawn is not None and [line.block for line in drawn.lines] == ["a.weight", "b.weight", "(full)"]
    axis = LogAxis.over(10.0 * (k + 1) * 0.5**i for k in range(3) for i in range(12))
    for place, line in enumerate(drawn.lines):
        points = corners(line.path)
        assert np.allclose(points[:, 0], np.linspace(0, 1000, 12), atol=0.5)
        expected = [1000 - 10 * axis.at(10.0 * (place + 1) * 0.5**i) for i in range(12)]
        assert np.allclose(points[:, 1], expected, atol=0.51)


def test_bands_hold_the_bounds_and_a_hole_in_the_values_is_left_out() -> None:
    made = history(points=3)
    made.points[1].readings["b.weight"] = Reading("b.weight", -1.0, 0.1, math.nan, 4, 1)
    drawn = curves(made)
    assert drawn is not None
    assert len(corners(drawn.lines[1].path)) == 2
    bands = {band.block: corners(band.path) for band in drawn.bands}
    for line in drawn.lines:
        values, around = corners(line.path), bands[line.block]
        high, low = around[: len(values)], around[::-1][: len(values)]
        assert np.all(high[:, 1] <= values[:, 1]) and np.all(low[:, 1] >= values[:, 1])


def test_the_threshold_is_drawn_where_an_optimizer_was_watched() -> None:
    assert threshold(history(optimizer=False)) is None
    drawn = threshold(history())
    assert drawn is not None and [line.block for line in drawn.lines] == ["preconditioned sharpness", "threshold"]


def test_the_answers_say_where_it_goes() -> None:
    page = as_html(history())
    ratio = 3 * 30.0 * 0.5**11 / 50.0
    assert "2,000 times flatter" in page and f"{ratio:.3g} times the threshold" in page
    assert "Learning rate below" in as_html(history(optimizer=False))
    rising = history()
    rising.points.reverse()
    rising.points = [Point(10 * (i + 1), p.readings, 0.1) for i, p in enumerate(rising.points)]
    assert "2,000 times sharper" in as_html(rising)
    assert 'class="big warn"' in as_html(rising) and 'class="big warn"' not in page


def test_without_points_and_with_one_there_is_a_page_that_says_so() -> None:
    assert "Not known: no point" in as_html(History(settings={"model": "Net"}))
    assert "About as sharp as at first" in as_html(history(points=1))


def test_names_cannot_break_out() -> None:
    made = history(names=(NASTY, "b"))
    made.notes, made.settings = [NASTY], {"model": NASTY, NASTY: NASTY}
    page = as_html(made)
    assert page.count("<script>") == 1 and "<script>alert" not in page
    assert not re.search(r"\son\w+=", page)


def test_the_report_command_draws_a_monitors_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = history()
    made.save(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == as_html(lh.load_history(tmp_path))
    assert capsys.readouterr().out.strip() == str((tmp_path / "report.html").resolve())
    assert rewrite_report(tmp_path) == (tmp_path / "report.html").resolve()


def test_a_threshold_that_was_passed_before_the_end_is_told() -> None:
    made = history()
    ratios = [point.full.ratio for point in made.points if point.full is not None]
    assert ratios[0] > 1.0 > ratios[-1]
    page = as_html(made)
    assert f"It was {ratios[0]:.3g} times the threshold at step 10." in page and 'class="big good"' not in page


def test_without_a_point_a_failure_is_the_reason() -> None:
    made = history(points=0)
    assert "no time for a point" in as_html(made)
    made.notes.append("the monitor stopped at step 4: ZeroDivisionError: division by zero")
    page = as_html(made)
    assert "The monitor stopped at step 4: ZeroDivisionError" in page and "no time for a point" not in page


def test_a_name_cannot_turn_around_the_numbers_that_follow_it() -> None:
    name = "a\u202eb"
    page = as_html(history(names=(name,)))
    assert page.count("\u202e") == page.count(f'data-block="{name}"') > 0 and "a\\u202eb" in page
