"""The rows of a plan's table: for each layer what it gets, its marks, and all its options behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from layerhess.linalg.described import plain
from layerhess.results.plan import PlanRecord, PlanRow
from layerhess.show.numbers import count, number, share
from layerhess.show.page.axis import LogAxis
from layerhess.show.page.marks import ERRORS, LEAST_WIDTH
from layerhess.show.plan import words

MANY = 400  # options of all layers from which on each is one line of text, not a row of cells
PREDICTIONS = {
    "predicted_curvature": "by curvature",
    "predicted_gauss_newton": "Gauss-Newton",
    "predicted_hawq_v2": "HAWQ-V2",
    "predicted_hawq": "HAWQ",
    "predicted_fisher": "empirical Fisher",
}


@dataclass(frozen=True)
class Choice:
    """One option of a layer as texts: its name, the cells of the columns, and whether it is chosen or allowed."""

    name: str
    cells: list[str]
    chosen: bool
    allowed: bool

    def line(self, heads: Sequence[str]) -> str:
        """All in one line, for tables with many layers."""
        said = "; ".join(f"{head} {text}" for head, text in zip(heads, self.cells, strict=True) if text != "-")
        return f"{self.name}{' (chosen)' if self.chosen else ''}: {said}"


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        block: its name, as in the plan. prefix, last: the name in two parts, up to the last dot and after it.
        option, numel, alone, predicted, hawq, size: texts of what is chosen. marks: SVG. keys: numbers to sort by.
        tags: words beside the name. choices: all options. lines: the same where there are many. shape: in words.
    """

    block: str
    prefix: str
    last: str
    option: str
    numel: str
    alone: str
    predicted: str
    hawq: str
    size: str
    marks: Markup
    keys: dict[str, float]
    tags: tuple[str, ...]
    choices: list[Choice]
    lines: list[str]
    shape: str


@dataclass(frozen=True)
class Table:
    """All layers in model order, their marks on one axis, and the columns of the table behind each.

    Attributes:
        curvature, hawq: some layer has a number in that column.
    """

    rows: list[Row]
    axis: LogAxis
    heads: list[str]
    curvature: bool
    hawq: bool


def table(plan: PlanRecord) -> Table:
    """The table of a plan."""
    by_layer: dict[str, list[PlanRow]] = {name: [] for name in plan.choice}
    for row in plan.rows:
        by_layer.setdefault(row.layer, []).append(row)
    axis = LogAxis.over(row.measured for row in plan.rows)
    used = [name for name in PREDICTIONS if any(math.isfinite(getattr(row, name)) for row in plan.rows)]
    heads = ["bits", "size", "loss increase", *(["KL divergence"] if _any(plan, "kl") else [])]
    heads += [*(PREDICTIONS[name] for name in used), "change of the weights"]
    many = len(plan.rows) > MANY
    weights = {weight.name: weight for weight in plan.weights}
    chosen = words.chosen_rows(plan)
    rows = []
    for name, found in by_layer.items():
        own, weight = chosen.get(name), weights[name]
        choices = [Choice(plain(row.option.name), _cells(row, used, heads), row is own, row.allowed) for row in found]
        prefix, dot, last = plain(name).rpartition(".")
        shape = f"{' x '.join(map(str, weight.shape))} {weight.dtype}, {weight.module or 'weight'}"
        if weight.aliases:
            shape += f"; also called {', '.join(map(plain, weight.aliases))}"
        rows.append(
            Row(
                block=name,
                prefix=prefix + dot,
                last=last,
                option=plain(plan.choice[name].name),
                numel=count(weight.numel),
                alone="-" if own is None else words.increase(own.measured, own.measured_error),
                predicted="-" if own is None else number(own.predicted_curvature, 3),
                hawq="-" if own is None else number(own.predicted_hawq_v2, 3),
                size="-" if own is None else words.megabytes(own.size_bytes),
                marks=_marks(found, own, axis),
                keys=_keys(own, weight.numel),
                tags=tuple(f"{plain(row.option.name)} is out" for row in found if not row.allowed and row.why_not),
                choices=[] if many else choices,
                lines=[choice.line(heads) for choice in choices] if many else [],
                shape=shape,
            )
        )
    return Table(rows, axis, heads, _any(plan, "predicted_curvature"), _any(plan, "predicted_hawq_v2"))


def _any(plan: PlanRecord, name: str) -> bool:
    return any(math.isfinite(getattr(row, name)) for row in plan.rows)


def _cells(row: PlanRow, used: Sequence[str], heads: Sequence[str]) -> list[str]:
    found = [number(row.bits, 3), words.megabytes(row.size_bytes)]
    found.append(plain(row.why_not) if row.why_not else words.increase(row.measured, row.measured_error))
    if "KL divergence" in heads:
        found.append(words.increase(row.kl, row.kl_error).removeprefix("+"))
    return [*found, *(number(getattr(row, name)) for name in used), share(row.change)]


def _keys(own: PlanRow | None, numel: int) -> dict[str, float]:
    found = {"numel": float(numel)}
    if own is not None:
        found |= {
            "bits": own.bits,
            "top": own.measured,
            "curvature": own.predicted_curvature,
            "hawq": own.predicted_hawq_v2,
            "size": own.size_bytes,
        }
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _marks(rows: Sequence[PlanRow], own: PlanRow | None, axis: LogAxis) -> Markup:
    """A ring for each option, a dot for the chosen one, with two standard errors either way; none for those below 0."""
    parts = [
        f'<circle class="more" cx="{axis.at(row.measured):.2f}%" cy="50%" r="2.6"/>'
        for row in rows
        if row is not own and row.measured > 0.0
    ]
    if own is not None and own.measured > 0.0:
        ends = [axis.at(own.measured + sign * ERRORS * own.measured_error) for sign in (-1.0, 1.0)]
        if math.isfinite(own.measured_error) and ends[1] - ends[0] >= LEAST_WIDTH:
            parts.append(f'<line class="err" x1="{ends[0]:.2f}%" x2="{ends[1]:.2f}%" y1="50%" y2="50%"/>')
        parts.append(f'<circle class="pt" cx="{axis.at(own.measured):.2f}%" cy="50%" r="4.4"/>')
    return Markup("".join(parts))  # numbers and fixed words only
