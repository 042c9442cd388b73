"""The charts of a plan's page: bits of each layer, predicted against measured, size against increase, and pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from layerhess.linalg.described import plain
from layerhess.results.plan import PLAN, MeasuredPlan, PlanRecord
from layerhess.show.page.axis import LogAxis, Tick
from layerhess.show.page.coefficients import LEVELS, NAMED
from layerhess.show.plan import words

SCALE = 1000.0  # units of a stretched drawing, either way
SHAPES = {  # kind -> an SVG path about the origin
    "plan": "M0-7 7 0 0 7-7 0z",  # a diamond
    "uniform": "M-5-5h10v10h-10z",
    "hawq": "M0-6 6 5-6 5z",  # a triangle
    "candidate": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "random": "M-2.4 0a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0-4.8 0z",
}
CALLED = {
    "plan": "the plan",
    "uniform": "uniform bits",
    "hawq": "HAWQ-V2",
    "candidate": "candidates and the frontier",
    "random": "random plans",
}


@dataclass(frozen=True)
class Point:
    """A measured plan at a place in per cent (of the height from above): its kind, and what it is in words."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Scatter:
    """Points, ticks of both axes, and a line behind them: an SVG path in 0 to 1,000 either way."""

    points: list[Point]
    x: list[Tick]
    y: list[Tick]
    line: str = ""
    sentence: str = ""
    kinds: list[str] = field(default_factory=list)


def predicted_against_measured(plan: PlanRecord) -> Scatter | None:
    """All plans that were measured, on one scale both ways, with the diagonal; None where none was predicted."""
    found = [one for one in words.measured_plans(plan) if math.isfinite(one.predicted)]
    drawn = [one for one in found if one.measured > 0.0 and one.predicted > 0.0]
    if len(drawn) < 2:
        return None
    axis = LogAxis.over(value for one in drawn for value in (one.measured, one.predicted))
    points = [
        Point(
            axis.at(one.predicted),
            100.0 - axis.at(one.measured),
            kind_of(plan, one),
            f"{_called(plan, one)}: predicted {words.increase(one.predicted)}, measured "
            f"{words.increase(one.measured, one.measured_error)}",
        )
        for one in drawn
    ]
    said = words.told_agreement(plan)
    if left := len(found) - len(drawn):
        said.append(f"{left} with an increase of zero or below have no place on logarithmic axes.")
    return _scatter(points, axis, axis, "M0 1000L1000 0", " ".join(said))


def frontier(plan: PlanRecord) -> Scatter | None:
    """Size against measured increase of every measured plan; the line is the Pareto frontier."""
    drawn = [one for one in words.measured_plans(plan) if one.measured > 0.0 and one.size_bytes > 0.0]
    if len(drawn) < 2:
        return None
    across = LogAxis.over(one.size_bytes for one in drawn)
    up = LogAxis.over(one.measured for one in drawn)
    points = [
        Point(
            across.at(one.size_bytes),
            100.0 - up.at(one.measured),
            kind_of(plan, one),
            f"{_called(plan, one)}: {words.megabytes(one.size_bytes)}, "
            f"{words.increase(one.measured, one.measured_error)}",
        )
        for one in drawn
    ]
    best = pareto(drawn)
    corners = [(across.at(one.size_bytes) * 10.0, 1000.0 - up.at(one.measured) * 10.0) for one in best]
    path = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in corners) if len(corners) > 1 else ""
    sizes = [Tick(tick.at, _as_size(tick.label)) for tick in across.ticks()]
    return Scatter(
        sorted(points, key=_above),
        sizes,
        [Tick(100.0 - tick.at, tick.label) for tick in up.ticks()],
        path,
        f"The line joins the {len(best)} plans that no other measured one beats in both.",
        _kinds(points),
    )


def pareto(plans: Iterable[MeasuredPlan]) -> list[MeasuredPlan]:
    """Those that no other beats in both size and measured increase, from the smallest on."""
    best: list[MeasuredPlan] = []
    for one in sorted(plans, key=lambda one: (one.size_bytes, one.measured)):
        if not best or one.measured < best[-1].measured:
            best.append(one)
    return best


def kind_of(plan: PlanRecord, one: MeasuredPlan) -> str:
    """By which mark a measured plan is drawn."""
    if dict(one.choice) == dict(plan.choice) or one.name == PLAN:
        return "plan"
    for kind in ("uniform", "hawq", "random"):
        if one.name.startswith(kind):
            return kind
    return "candidate"


def _called(plan: PlanRecord, one: MeasuredPlan) -> str:
    return CALLED["plan"] if kind_of(plan, one) == "plan" else plain(one.name)


def _scatter(points: list[Point], x: LogAxis, y: LogAxis, line: str, sentence: str) -> Scatter:
    up = [Tick(100.0 - tick.at, tick.label) for tick in y.ticks()]
    return Scatter(sorted(points, key=_above), x.ticks(), up, line, sentence, _kinds(points))


def _above(point: Point) -> int:
    """The plan is drawn last, random ones first."""
    return -list(SHAPES).index(point.kind)


def _kinds(points: list[Point]) -> list[str]:
    return [kind for kind in SHAPES if any(point.kind == kind for point in points)]


def _as_size(label: str) -> str:
    if not label:
        return ""
    return words.megabytes(float(label.replace(",", "").replace("−", "-")))


# -- bits of each layer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One layer: its bars in units of the drawing, and what they are in words.

    Attributes:
        x, width: of both. up: the height of the bits, above the line. down: of the increase alone, below it.
    """

    block: str
    x: float
    width: float
    up: float
    down: float
    title: str


@dataclass(frozen=True)
class Strip:
    """All layers in model order: bits upwards, the increase alone downwards; the axes' largest values."""

    columns: list[Column]
    most_bits: float
    most_increase: float
    height: float = SCALE / 2.0


def strip(plan: PlanRecord) -> Strip | None:
    """The bits of each layer beside its measured increase; None where no layer was measured."""
    rows = words.chosen_rows(plan)
    known = [row for row in rows.values() if row is not None]
    most = max((row.bits for row in known if math.isfinite(row.bits)), default=0.0)
    worst = max((row.measured for row in known if math.isfinite(row.measured)), default=0.0)
    if most <= 0.0:
        return None
    width = SCALE / len(rows)
    gap = min(0.2 * width, 4.0)
    columns = []
    for index, (name, row) in enumerate(rows.items()):
        option = plain(plan.choice[name].name)
        bits = row.bits if row is not None and math.isfinite(row.bits) else 0.0
        alone = row.measured if row is not None and math.isfinite(row.measured) else 0.0
        said = "" if row is None else f", {words.increase(row.measured, row.measured_error)} alone"
        columns.append(
            Column(
                name,
                index * width + gap / 2.0,
                width - gap,
                SCALE / 2.0 * bits / most,
                SCALE / 2.0 * max(alone, 0.0) / worst if worst > 0.0 else 0.0,
                f"{plain(name)}: {option}{said}",
            )
        )
    return Strip(columns, most, worst)


# -- pairs of layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedTriangle:
    """The lower triangle of all pairs, in unit squares: what each adds to the increase, or takes from it.

    Attributes:
        blocks: names in model order. shades: (opacity, whether it is below zero, path) of the cells with that shade.
        crosses: for each block the path of its row and column. most: the size of the darkest shade.
    """

    blocks: Sequence[str]
    shades: list[tuple[float, bool, str]]
    crosses: list[str]
    size: int
    most: float


def signed_triangle(plan: PlanRecord) -> SignedTriangle | None:
    """The picture of the interactions; None where they are unknown, or too many to have their names beside them."""
    names = [weight.name for weight in plan.weights]
    size = len(names)
    values = plan.interactions
    if not 2 <= size <= NAMED or values.shape != (size, size) or not np.isfinite(values).any():
        return None
    sums = np.tril(values + values.T, -1)
    most = float(np.nanmax(np.abs(sums)))
    if most == 0.0:
        return None
    cells: dict[tuple[int, bool], list[str]] = {}
    for row in range(size):
        for column in range(row):
            value = float(sums[row, column])
            if math.isfinite(value) and value != 0.0:
                level = max(1, math.ceil(LEVELS * abs(value) / most - 1e-9))
                cells.setdefault((level, value < 0.0), []).append(f"M{column} {row}h1v1h-1z")
    shades = [(level / LEVELS, below, "".join(parts)) for (level, below), parts in sorted(cells.items())]
    crosses = [f"M0 {b}h{b + 1}v{size - b}h-1v{b + 1 - size}h-{b}z" for b in range(size)]
    return SignedTriangle(names, shades, crosses, size, most)
