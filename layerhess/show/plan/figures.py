"""Figures of a plan: bits of each layer beside their cost, predicted against measured, and the Pareto frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from layerhess.linalg.described import plain
from layerhess.results.plan import MeasuredPlan, PlanRecord
from layerhess.show.figures import WIDTH, canvas, name_rows, shortened, style_axes
from layerhess.show.numbers import number
from layerhess.show.plan import words
from layerhess.show.plan.charts import CALLED, kind_of, pareto
from layerhess.show.style import BLUE, INK, MUTED, PAPER, QUIET, RULE, TOP, VERMILION, WRONG, Picture

MOST_ROWS = 300
MARKS = {  # kind -> shape, colour, whether it is filled, size; told apart in grey by their shapes
    "random": (".", QUIET, True, 5.0),
    "candidate": ("o", BLUE, False, 5.0),
    "hawq": ("^", BLUE, True, 6.5),
    "uniform": ("s", INK, True, 5.5),
    "plan": ("D", VERMILION, True, 7.0),
}


def bits(plan: PlanRecord) -> Picture:
    """A row for each layer: what it gets at the left, its increase alone with two standard errors at the right.

    Hollow marks are the layer's other options. With more than 300 layers, those whose increase is the largest.
    """
    chosen = words.chosen_rows(plan)
    names = _shown(plan)
    figure, first = canvas(len(names), "bits", 2)
    second = figure.add_subplot(1, 2, 2, sharey=first)
    style_axes(second)
    name_rows(first, names)
    for place, name in enumerate(names):
        row = chosen[name]
        label = shortened(plan.choice[name].name, 24)
        size = row.bits if row is not None and math.isfinite(row.bits) else 0.0
        first.barh(place, size, height=0.62, color=TOP, zorder=2)
        first.text(size, place, f" {label}", va="center", fontsize=8, color=INK)
    largest = max((row.bits for row in chosen.values() if row is not None and math.isfinite(row.bits)), default=1.0)
    first.set_xlim(0.0, 1.35 * largest)
    first.set_xlabel("bits a weight", color=MUTED, fontsize=9)
    places = {name: place for place, name in enumerate(names)}
    positive = [row.measured for row in plan.rows if row.layer in places and row.measured > 0.0]
    if positive:
        second.set_xscale("log")
    for option in plan.rows:
        if option.layer in places and option.measured > 0.0 and option is not chosen[option.layer]:
            second.plot(option.measured, places[option.layer], "o", color=QUIET, markersize=3.5, markerfacecolor="none")
    for name, place in places.items():
        row = chosen[name]
        if row is None or not math.isfinite(row.measured):
            continue
        if row.measured <= 0.0:
            said = f"{number(row.measured, 2)}: no increase"
            second.text(0.01, place, said, transform=second.get_yaxis_transform(), va="center", fontsize=8, color=MUTED)
            continue
        error = 2.0 * row.measured_error
        shown = [[min(error, 0.999 * row.measured)], [error]] if math.isfinite(error) else None
        second.errorbar(
            row.measured, place, xerr=shown, fmt="o", color=TOP, markersize=5.0, elinewidth=1.4, capsize=2.5, zorder=3
        )
    second.set_xlabel("increase of the loss, this layer alone", color=MUTED, fontsize=9)
    second.tick_params(labelleft=False)
    if len(names) < len(plan.choice):
        first.set_title(
            f"the {len(names)} of {len(plan.choice)} layers that cost most", fontsize=9, color=MUTED, loc="left"
        )
    figure.tight_layout()
    return figure


def predicted(plan: PlanRecord) -> Picture:
    """Every measured plan: predicted increase across, measured upwards with one standard error, and the diagonal."""
    found = [one for one in words.measured_plans(plan) if one.predicted > 0.0 and one.measured > 0.0]
    figure, axes = _square()
    _points(axes, plan, found, [one.predicted for one in found])
    if found:
        ends = [value for one in found for value in (one.predicted, one.measured)]
        low, high = min(ends) / 1.4, max(ends) * 1.4
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
    axes.set_xlabel("predicted increase of the loss", color=MUTED, fontsize=9)
    axes.set_ylabel("measured increase", color=MUTED, fontsize=9)
    axes.set_title(words.told_agreement(plan)[0], fontsize=9, color=MUTED, loc="left", pad=40, wrap=True)
    figure.tight_layout()
    return figure


def frontier(plan: PlanRecord) -> Picture:
    """Every measured plan: its size across, its increase upwards; a line along those that none beats in both."""
    found = [one for one in words.measured_plans(plan) if one.size_bytes > 0.0 and one.measured > 0.0]
    figure, axes = _square()
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if plan.size_bytes >= u), (1e3, "kB"))
    _points(axes, plan, found, [one.size_bytes / unit for one in found])
    axes.set_xscale("linear")
    best = pareto(found)
    axes.plot([one.size_bytes / unit for one in best], [one.measured for one in best], color=MUTED, linewidth=1.0)
    axes.set_xlabel(f"size of the planned weights in {name}, scales counted", color=MUTED, fontsize=9)
    axes.set_ylabel("measured increase of the loss", color=MUTED, fontsize=9)
    figure.tight_layout()
    return figure


def _shown(plan: PlanRecord) -> list[str]:
    names = list(plan.choice)
    if len(names) <= MOST_ROWS:
        return names
    rows = words.chosen_rows(plan)
    size = {name: -math.inf if (row := rows[name]) is None else row.measured for name in names}
    kept = set(sorted(names, key=lambda name: -size[name])[:MOST_ROWS])
    return [name for name in names if name in kept]


def _square() -> tuple[Picture, Axes]:
    figure = Picture(figsize=(0.75 * WIDTH, 0.6 * WIDTH), facecolor=PAPER)
    axes = figure.add_subplot(1, 1, 1)
    style_axes(axes)
    axes.spines["left"].set_visible(True)
    axes.grid(axis="both", color=RULE, linewidth=0.7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return figure, axes


def _points(axes: Axes, plan: PlanRecord, found: Sequence[MeasuredPlan], across: Sequence[float]) -> None:
    """Marks by kind, with one standard error upwards and downwards; a legend above."""
    if not found:
        axes.text(0.5, 0.5, "no plan was measured", transform=axes.transAxes, color=WRONG, ha="center")
        return
    for order, (kind, (shape, colour, filled, size)) in enumerate(MARKS.items()):
        own = [(x, one) for x, one in zip(across, found, strict=True) if kind_of(plan, one) == kind]
        if not own:
            continue
        errors = [one.measured_error if math.isfinite(one.measured_error) else 0.0 for _, one in own]
        lower = [min(error, 0.999 * one.measured) for error, (_, one) in zip(errors, own, strict=True)]
        label = plain(own[0][1].name) if kind == "uniform" and len(own) == 1 else CALLED[kind]
        axes.errorbar(
            [x for x, _ in own],
            [one.measured for _, one in own],
            yerr=[lower, errors],
            fmt=shape,
            color=colour,
            markersize=size,
            markerfacecolor=colour if filled else "none",
            elinewidth=0.8,
            label=label,
            zorder=2 + order,
        )
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=9, labelcolor=INK,
        borderaxespad=0.3, handletextpad=0.3,
    )  # fmt: skip
