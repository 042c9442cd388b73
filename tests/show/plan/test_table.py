"""A plan in the terminal: it fits, it has every layer's numbers, and it says what is not known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from rich.cells import cell_len

import plans_by_hand
from layerhess.results.options import Quantize
from layerhess.results.plan import Score
from layerhess.show.plan import table

HOSTILE = "</td><script>alert(1)</script>\x1b[31m\u202ename" + "層" * 60


def hostile() -> Any:
    layers = {f"{HOSTILE}{i}.weight": (8, 8) for i in range(3)}
    return plans_by_hand.plan(layers, (4, 2, 8), verdict=HOSTILE, warnings=(HOSTILE,), metric_name=HOSTILE)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("make", [plans_by_hand.plan, plans_by_hand.pruned, plans_by_hand.undone, hostile])
def test_no_line_is_wider_than_the_terminal(make: Any, width: int) -> None:
    lines = table.as_text(make(), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not any("\x1b" in line or "\u202e" in line for line in lines)


def test_each_layer_has_its_option_and_what_that_costs_alone() -> None:
    made = plans_by_hand.plan()
    text = table.as_text(made, 120)
    row = next(r for r in made.rows if r.layer == "block1.conv2.weight" and r.option == Quantize(3))
    line = next(line for line in text.splitlines() if line.startswith("block1.conv2.weight"))
    cells = line.split()
    assert cells[1:5] == ["w3", "3", f"{row.size_bytes:.0f}", "B"]
    assert (float(cells[5]), cells[6]) == (pytest.approx(row.measured, abs=row.measured_error / 9), "±")
    assert float(cells[7]) == pytest.approx(row.measured_error, rel=0.1)
    assert float(cells[8]) == pytest.approx(row.predicted_curvature, rel=1e-3)
    assert float(cells[9]) == pytest.approx(row.predicted_hawq_v2, rel=1e-2)


def test_at_eighty_columns_option_increase_and_curvature_are_there_with_whole_names() -> None:
    text = table.as_text(plans_by_hand.plan())
    assert "block2.shortcut.0.weight" in text
    head = text.splitlines()[0]
    assert all(word in head for word in ("option", "bits", "loss increase alone", "by curvature"))


def test_the_answers_give_size_cost_search_and_verdict() -> None:
    made = plans_by_hand.plan()
    told = " ".join(table.answers(made))
    assert "3.72 bits a weight" in told
    assert "2.63 kB instead of 20.9 kB (budget: 4 bits a weight)" in told
    assert "within 0.12 % of a proven bound for the quadratic with couplings" in told
    assert "Accuracy: 0.9574 ± 0.0041, of the float model 0.9722 ± 0.0039" in told
    assert "The plan is better than uniform w4 by 0.0123 +- 0.0041 of loss on held-out data." in told
    proven = dataclasses.replace(made, optimal=True)
    assert "proven best for the quadratic" in " ".join(table.answers(proven))
    assert "is not proven" in " ".join(table.answers(dataclasses.replace(made, gap=math.nan)))


def test_what_was_held_against_is_a_row_each_and_the_plan_the_first() -> None:
    made = plans_by_hand.plan()
    rows = table.plan_rows(made)
    assert [row["plan"] for row in rows] == [
        "plan",
        "uniform w4",
        "hawq_v2",
        "uniform w8, over budget",
        "median of 40 random",
    ]
    assert rows[1]["against it"].startswith("worse than the plan, +")
    assert rows[0]["held out"] != "-"


@pytest.mark.parametrize(
    ("score", "word"),
    [
        (Score(0.3, 0.1), "worse than the plan, +0.30 ± 0.10"),
        (Score(-0.3, 0.1), "better than the plan, -0.30 ± 0.10"),
        (Score(0.19, 0.1), "not told apart, +0.19 ± 0.10"),
        (Score(0.3), "not told apart, +0.3"),
        (None, "-"),
    ],
)
def test_a_difference_counts_from_two_standard_errors_on(score: Score | None, word: str) -> None:
    made = plans_by_hand.plan()
    other = dataclasses.replace(made.baselines["uniform w4"], against_plan=score)
    assert table.plan_cells(made, other)["against it"] == word


def test_a_plan_that_could_not_be_measured_says_why() -> None:
    made = plans_by_hand.plan()
    failed = dataclasses.replace(made.baselines["hawq_v2"], failed="the loss is NaN", measured=math.nan)
    cells = table.plan_cells(made, failed)
    assert (cells["loss increase"], cells["against it"]) == ("-", "the loss is NaN")


def test_warnings_and_what_is_not_known_are_said() -> None:
    text = " ".join(table.as_text(plans_by_hand.undone()).split())
    assert "! the metric raised ValueError: no such class; the plan is kept without it" in text
    assert "HAWQ" not in text.split("loss increase alone")[0]
