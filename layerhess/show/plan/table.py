"""A plan as a table in the terminal: what each layer gets, then the answers, then what it was held against."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from layerhess.linalg.described import called, plain
from layerhess.results.plan import MeasuredPlan, PlanRecord, PlanRow
from layerhess.show.numbers import number
from layerhess.show.plan import words

WIDTH = 80
SHORT = 24  # characters of a layer's name that are never cut
LAYER_COLUMNS = ("layer", "option", "bits", "size", "loss increase alone", "by curvature", "HAWQ-V2")
FIRST_OUT = ("HAWQ-V2", "size", "by curvature", "bits")  # where a console is too narrow
PLAN_COLUMNS = ("plan", "bits", "size", "loss increase", "held out", "metric", "against it")
PLAN_OUT = ("size", "against it", "bits", "metric", "held out")


def as_text(plan: PlanRecord, width: int = WIDTH) -> str:
    """The plan as plain text, ``width`` columns wide, without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(renderable(plan))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def renderable(plan: PlanRecord) -> RenderableType:
    """The plan for a rich console of any width, with colours."""
    layers = [layer_cells(name, plan.choice[name].name, row) for name, row in words.chosen_rows(plan).items()]
    parts: list[RenderableType] = [
        Columns(LAYER_COLUMNS, layers, FIRST_OUT, left=("layer", "option")),
        "",
        *(Text(line, style="bold" if i < 2 else "") for i, line in enumerate(answers(plan))),
    ]
    parts += [Text(f"  ! {plain(warning)}", style="red") for warning in plan.warnings]
    plans = plan_rows(plan)
    if len(plans) > 1:
        title = f"metric: {plain(plan.metric_name)}" if plan.metric_name else ""
        columns = tuple(name for name in PLAN_COLUMNS if any(row[name] not in ("", "-") for row in plans))
        parts += ["", Columns(columns, plans, PLAN_OUT, left=("plan", "against it"), bold=0)]
        parts += [Text(title, style="dim")] if title else []
    return Group(*parts)


def answers(plan: PlanRecord) -> list[str]:
    """The size, the cost, and whether it is worth it: sentences."""
    predicted = f"; predicted {words.increase(plan.predicted)}" if math.isfinite(plan.predicted) else ""
    said = [
        f"{number(plan.mean_bits, 3)} bits a weight, {words.megabytes(plan.size_bytes)} instead of "
        f"{words.megabytes(plan.float_bytes)} (budget: {plain(plan.budget)}).",
        f"Loss {number(plan.loss)}, increase {words.increase(plan.measured, plan.measured_error)}{predicted}.",
        words.between_layers(plan),
        words.search(plan),
        metric_sentence(plan),
        words.verdict(plan),
    ]
    return [sentence for sentence in said if sentence]


def metric_sentence(plan: PlanRecord) -> str:
    """The metric of the plan and of the float model."""
    if plan.metric is None:
        return ""
    before = "" if plan.metric_float is None else f", of the float model {words.scored(plan.metric_float)}"
    name = plain(plan.metric_name) or "metric"
    return f"{name[0].upper()}{name[1:]}: {words.scored(plan.metric)}{before}."


def layer_cells(name: str, option: str, row: PlanRow | None) -> dict[str, str]:
    """The texts of one layer, by column."""
    if row is None:
        return dict.fromkeys(LAYER_COLUMNS, "-") | {"layer": plain(name), "option": plain(option)}
    return {
        "layer": plain(name),
        "option": plain(option),
        "bits": number(row.bits, 3),
        "size": words.megabytes(row.size_bytes),
        "loss increase alone": words.increase(row.measured, row.measured_error),
        "by curvature": words.increase(row.predicted_curvature),
        "HAWQ-V2": number(row.predicted_hawq_v2, 3),
    }


def plan_rows(plan: PlanRecord) -> list[dict[str, str]]:
    """The plan, what it was held against, and random plans in the middle: the texts, by column."""
    found = [plan_cells(plan, words.own(plan)) | {"plan": "plan", "against it": ""}]
    found += [plan_cells(plan, one) for one in words.held_against(plan)]
    drawn = sorted((one for one in plan.random if math.isfinite(one.measured)), key=lambda one: one.measured)
    if drawn:
        middle = drawn[len(drawn) // 2]
        found.append(plan_cells(plan, middle) | {"plan": f"median of {len(drawn)} random", "against it": ""})
    return found


def plan_cells(plan: PlanRecord, one: MeasuredPlan) -> dict[str, str]:
    """The texts of one measured plan, by column."""
    if one.failed:
        return dict.fromkeys(PLAN_COLUMNS, "-") | {"plan": plain(one.name), "against it": plain(one.failed)}
    held = "-" if one.held_out is None else words.increase(one.held_out.value, one.held_out.error)
    return {
        "plan": plain(one.name) + ("" if one.fits else ", over budget"),
        "bits": number(one.mean_bits, 3),
        "size": words.megabytes(one.size_bytes),
        "loss increase": words.increase(one.measured, one.measured_error),
        "held out": held,
        "metric": words.scored(one.metric),
        "against it": words.against(plan, one),
    }


class Columns:
    """A table with as many of its columns as fit the console's width; the least telling are left out first.

    Args:
        left: columns of words. bold: the row that is set off.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[dict[str, str]],
        first_out: Sequence[str],
        left: Sequence[str],
        bold: int = -1,
    ) -> None:
        self.columns, self.rows, self.first_out, self.left, self.bold = columns, rows, first_out, left, bold

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table."""
        widths = {name: max(cell_len(text) for text in [name, *(row[name] for row in self.rows)])
                  for name in self.columns}  # fmt: skip
        shown = list(self.columns)
        name = shown[0]
        for column in self.first_out:
            widths[name] = self._room(shown, widths, options.max_width)
            if widths[name] >= min(SHORT, self._longest()):
                break
            if column in shown:
                shown.remove(column)
        widths[name] = max(self._room(shown, widths, options.max_width), 8)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in shown:
            side = "left" if column in self.left else "right"
            table.add_column(column, justify=side, overflow="fold", no_wrap=column not in ("against it",))  # type: ignore[arg-type]
        for index, row in enumerate(self.rows):
            cells = [called(row[c], widths[name]) if c == name else row[c] for c in shown]
            table.add_row(*map(Text, cells), style="bold" if index == self.bold else "")
        yield table

    def _longest(self) -> int:
        return max(cell_len(row[self.columns[0]]) for row in self.rows)

    def _room(self, shown: Sequence[str], widths: dict[str, int], room: int) -> int:
        """What is left for the first column."""
        return min(self._longest(), room - sum(widths[column] + 2 for column in shown[1:]) - 2)
