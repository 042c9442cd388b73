"""The page of a plan, and its section in a report: complete, self-contained, safe, and small however many layers."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

import fabricated
import plans_by_hand
from html_page import Page
from layerhess.results.options import Quantize
from layerhess.results.plan import PlanRecord
from layerhess.show import report
from layerhess.show.plan import charts
from layerhess.show.plan.layers import table
from layerhess.show.plan.page import answers, as_html

NASTY = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


def plan() -> PlanRecord:
    return plans_by_hand.plan()


def large() -> PlanRecord:
    layers = {f"encoder.layers.{i // 4}.{'qkvo'[i % 4]}.weight": (768, 768) for i in range(200)}
    options = tuple(Quantize(bits) for bits in (2, 3, 4, 5, 6, 7, 8, 16))
    return plans_by_hand.plan(layers, tuple(options[i % 8].bits for i in range(200)), options)


def test_nothing_is_fetched_and_nothing_of_the_plan_is_markup() -> None:
    layers = {f"{NASTY}{i}.weight": (8, 8) for i in range(3)}
    made = plans_by_hand.plan(
        layers, (4, 2, 8), verdict=NASTY, warnings=(NASTY,), metric_name=NASTY, found_by=NASTY, gap_of=NASTY,
        budget=NASTY, settings={NASTY: NASTY, "model": NASTY},
    )  # fmt: skip
    renamed = dataclasses.replace(made.baselines["hawq_v2"], name=NASTY, failed=NASTY)
    made = dataclasses.replace(made, baselines={**made.baselines, NASTY: renamed}, candidates={NASTY: renamed})
    for html in (as_html(made), report.as_html(fabricated.analysis(), made)):
        page = Page(html)
        assert html.count("<script") == len([tag for tag, _ in page.tags if tag == "script"])
        assert "img" not in {tag for tag, _ in page.tags}
        assert not {"src", "href", "onerror"} & {name for _, attributes in page.tags for name in attributes}
        styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
        assert styles and "url(" not in styles and "@import" not in styles
        assert NASTY in page.text


def test_every_layer_has_a_row_with_its_numbers_and_all_its_options() -> None:
    made = plan()
    page = Page(as_html(made))
    rows = {attributes["data-block"]: cells for attributes, cells in page.rows if attributes.get("class") == "row"}
    assert list(rows) == list(made.choice)
    chosen = {r.layer: r for r in made.rows if made.choice[r.layer] == r.option}
    for name, cells in rows.items():
        assert cells[1] == made.choice[name].name
        row = chosen[name]
        assert f"{row.predicted_curvature:.3g}" in cells
        assert f"{row.predicted_hawq_v2:.3g}" in cells
    options = [cells for attributes, cells in page.rows if re.match(r"w\d", cells[0])]
    assert len(options) == len(made.rows)
    marked = [cells[0] for attributes, cells in page.rows if attributes.get("class") == "chosen"]
    assert marked == [f"{option.name}, chosen" for option in made.choice.values()]


def test_numbers_to_sort_by_are_those_of_the_chosen_option() -> None:
    made = plan()
    for row in table(made).rows:
        own = next(r for r in made.rows if r.layer == row.block and r.option == made.choice[row.block])
        assert row.keys["top"] == own.measured
        assert row.keys["bits"] == own.bits
        assert row.keys["curvature"] == own.predicted_curvature


def test_the_answers_say_what_it_is_what_it_costs_and_whether_it_is_better() -> None:
    made = plan()
    chosen, costs, better = answers(made)
    assert chosen.headline == "3.72 bits a weight, 2.63 kB"
    assert costs.headline.startswith("Loss +0.1276 ±")
    assert "On held-out data: +0.140" in " ".join(costs.sentences)
    assert (better.headline, better.tone) == ("Yes, better than uniform bits", "good")
    assert better.sentences == [f"T{made.verdict[1:]}."]


@pytest.mark.parametrize(
    ("verdict", "headline", "tone"),
    [
        ("the plan and uniform w4 are not distinguishable here", "Not told apart from uniform bits", "warn"),
        ("the plan is WORSE than uniform w4 by 0.1 ± 0.02 of loss", "No, uniform bits are better", "wrong"),
        ("the plan is better than uniform w4 by 0.1 ± 0.02 of loss", "Yes, better than uniform bits", "good"),
        ("the plan is 12.0% smaller than uniform w8, the smallest uniform plan within the cap",
         "Yes, smaller than uniform bits", "good"),
        ("the plan is 2.0% LARGER than uniform w4, the smallest uniform plan within the cap",
         "No, larger than uniform bits", "wrong"),
        ("the plan is 2.0% LARGER than uniform w4, which does not keep the cap", "No uniform plan keeps the cap", ""),
        ("the plan is uniform w4: nothing better was found within the budget", "It is the uniform plan", ""),
        ("", "Not verified", ""),
        ("who knows", "Judged", ""),
    ],
)  # fmt: skip
def test_the_headline_follows_the_verdict(verdict: str, headline: str, tone: str) -> None:
    better = answers(dataclasses.replace(plan(), verdict=verdict))[2]
    assert (better.headline, better.tone) == (headline, tone)
    assert better.sentences == ([f"{verdict[0].upper()}{verdict[1:]}."] if verdict else [])


def test_a_plan_of_which_much_is_unknown_has_a_page_that_says_so() -> None:
    page = Page(as_html(plans_by_hand.undone()))
    assert "Not verified" in page.text
    assert "w2 is out" in page.text
    assert "the loss is NaN" in page.text
    assert "How layers act together is not known" in page.text
    assert ">nan<" not in as_html(plans_by_hand.undone()).lower()
    assert "HAWQ" not in page.text


def test_an_option_of_every_kind_is_shown() -> None:
    text = Page(as_html(plans_by_hand.pruned())).text
    assert "2:4 sparse, chosen" in text
    assert "50% sparse, chosen" in text


def test_two_hundred_layers_with_eight_options_are_a_small_page() -> None:
    made = large()
    html = as_html(made)
    assert len(html) < 2_000_000
    assert len(Page(html).tags) < 15_000
    row = made.rows[3]
    assert f"{row.predicted_hawq_v2:.4g}" in html, "every option's numbers are there"


# -- charts ------------------------------------------------------------------------------------------------------------


def test_points_lie_where_their_numbers_are() -> None:
    made = plan()
    found = charts.predicted_against_measured(made)
    assert found is not None
    on_line = dataclasses.replace(
        made, random=tuple(dataclasses.replace(one, predicted=one.measured) for one in made.random)
    )
    drawn = charts.predicted_against_measured(on_line)
    assert drawn is not None
    for point in drawn.points:
        if point.kind == "random":
            assert point.x + point.y == pytest.approx(100.0)
    ours = next(point for point in found.points if point.kind == "plan")
    assert ours.title.startswith("the plan: predicted +0.1356, measured +0.1276")
    assert found.points[-1] is ours, "drawn above the others"


def test_increases_of_zero_or_below_are_told_not_drawn() -> None:
    made = plan()
    lowered = tuple(dataclasses.replace(one, measured=-one.measured) for one in made.random)
    found = charts.predicted_against_measured(dataclasses.replace(made, random=lowered))
    assert found is not None
    assert len([p for p in found.points if p.kind == "random"]) == 0
    assert "40 with an increase of zero or below" in found.sentence


def test_the_frontier_joins_those_that_no_other_beats() -> None:
    made = plan()
    plans = [*made.frontier, *made.random, *made.baselines.values()]
    best = charts.pareto(plans)
    beaten = [
        one
        for one in best
        if any(o.size_bytes <= one.size_bytes and o.measured < one.measured for o in plans)
    ]  # fmt: skip
    assert best and not beaten
    outside = [one for one in plans if one not in best]
    for one in outside:
        assert any(o.size_bytes <= one.size_bytes and o.measured <= one.measured for o in best)


def test_bars_are_as_high_as_the_bits_and_as_deep_as_the_increase() -> None:
    made = plan()
    found = charts.strip(made)
    assert found is not None
    assert [round(8 * column.up / 500, 9) for column in found.columns] == [float(bits) for bits in plans_by_hand.CHOSEN]
    alone = [next(r for r in made.rows if r.layer == n and r.option == o).measured for n, o in made.choice.items()]
    assert [column.down / 500.0 * found.most_increase for column in found.columns] == pytest.approx(alone)


def test_the_triangle_has_the_sign_of_each_pair() -> None:
    values = np.zeros((8, 8))
    values[5, 2] = values[2, 5] = -0.3
    values[7, 1] = values[1, 7] = 0.15
    found = charts.signed_triangle(dataclasses.replace(plan(), interactions=values))
    assert found is not None
    assert found.shades == [(0.5, False, "M1 7h1v1h-1z"), (1.0, True, "M2 5h1v1h-1z")]
    assert found.most == pytest.approx(0.6)
    assert charts.signed_triangle(dataclasses.replace(plan(), interactions=np.full((8, 8), math.nan))) is None
    assert charts.signed_triangle(large()) is None, "too many to be named"


# -- in a report -------------------------------------------------------------------------------------------------------


def test_a_report_has_the_plans_section_if_one_is_given() -> None:
    made, analysis = plan(), fabricated.analysis()
    without, with_plan = report.as_html(analysis), report.as_html(analysis, made)
    assert "plan-title" not in without
    page = Page(with_plan)
    assert "Plan: which layer gets how many bits" in page.text
    assert made.verdict[1:] in page.text
    assert "uniform w8, over budget" in page.text
    blocks = {attributes.get("data-block") for tag, attributes in page.tags if tag == "g"}
    assert blocks == set(made.choice), "marked together with the layer's row"
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
