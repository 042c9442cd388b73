"""The table of a plan: what every (layer, option) does to the loss alone, measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.planning.budget import Budget
from layerhess.planning.layers import Layers
from layerhess.planning.measuring.meter import Measurement, Meter
from layerhess.planning.predictions import Predictions
from layerhess.planning.rows_file import RowsFile
from layerhess.results.plan import PlanRow

COLUMNS = ("measured", "kl", "curvature", "gauss_newton", "hawq_v2", "hawq", "fisher")


@dataclass
class Table:
    """Scores of single steps, (L, K); NaN where unknown, inf where an option is out.

    Attributes:
        steps: the measurements; None where there is none. why_not: sentences, "" where the option may be chosen.
    """

    layers: Layers
    measured: Floats
    errors: Floats
    kl: Floats
    kl_errors: Floats
    predictions: Predictions
    steps: list[list[Measurement | None]]
    why_not: list[list[str]]

    def scores(self, column: str) -> Floats | None:
        """(L, K) of a column, inf where the option is out; None where a score of an option is not known."""
        found = {"measured": self.measured, "kl": self.kl}.get(column)
        found = np.array(getattr(self.predictions, column) if found is None else found)
        out = np.array([[bool(why) for why in row] for row in self.why_not])
        if not np.isfinite(found[~out]).all():
            return None
        return np.where(out, math.inf, found)

    def rows(self, budget: Budget) -> tuple[PlanRow, ...]:
        """As records."""
        made = []
        for i, weight in enumerate(self.layers.weights):
            size = float(weight.numel)
            for k, option in enumerate(self.layers.options):
                predicted = {f"predicted_{name}": float(getattr(self.predictions, name)[i, k]) for name in COLUMNS[2:]}
                made.append(
                    PlanRow(
                        layer=weight.name,
                        option=option,
                        measured=float(self.measured[i, k]),
                        measured_error=float(self.errors[i, k]),
                        kl=float(self.kl[i, k]),
                        kl_error=float(self.kl_errors[i, k]),
                        bits=float(budget.bits[i, k]) / size,
                        size_bytes=float(budget.sizes[i, k]),
                        change=float(self.predictions.relative_change[i, k]),
                        allowed=not self.why_not[i][k],
                        why_not=self.why_not[i][k],
                        **predicted,
                    )
                )
        return tuple(made)


def measured_table(
    meter: Meter, layers: Layers, predictions: Predictions, rows: RowsFile, *, measure: bool, outputs: bool
) -> Table:
    """One pass over the data for every layer: each of its options alone; what was measured is written down at once."""
    shape = (len(layers.weights), len(layers.options))
    steps: list[list[Measurement | None]] = [[None] * shape[1] for _ in range(shape[0])]
    why_not = [list(row) for row in layers.why_not]
    columns = {name: np.full(shape, math.nan) for name in ("measured", "errors", "kl", "kl_errors")}
    table = Table(layers=layers, predictions=predictions, steps=steps, why_not=why_not, **columns)
    for i, weight in enumerate(layers.weights) if measure else ():
        places = [k for k in range(shape[1]) if not why_not[i][k]]
        found = rows.known(weight.name, len(places), outputs=outputs)
        if found is None:
            found = meter.measure([{weight.name: layers.options[k]} for k in places], outputs=outputs)
            rows.keep(weight.name, found)
        for k, one in zip(places, found, strict=True):
            steps[i][k] = one
            increase, divergence = meter.increase(one), meter.divergence(one)
            table.measured[i, k], table.errors[i, k] = increase.value, increase.error
            table.kl[i, k], table.kl_errors[i, k] = divergence.value, divergence.error
            if one.why:
                why_not[i][k] = one.why
                steps[i][k] = None
    return table


def around(
    meter: Meter,
    table: Table,
    place_of: Sequence[int],
    rows: RowsFile,
    room: float,
) -> tuple[Measurement, list[list[Measurement | None]], Floats] | None:
    """The same around a plan: every single step from it, and what the mean loss gains by each.

    Args:
        place_of: the plan, the place of an option for every layer. room: forward passes that may be made.

    Returns:
        The measurement of the plan, of every step from it, and (L, K) increases over the plan; None where there is no
        room, or where the plan's own loss is not finite.
    """
    layers = table.layers
    shape = table.measured.shape
    wanted = [[k for k in range(shape[1]) if not table.why_not[i][k] and k != place_of[i]] for i in range(shape[0])]
    if sum(map(len, wanted)) + 1 > room:
        return None
    name = f"around {','.join(map(str, place_of))}"
    found = rows.known(name, 1, outputs=True)
    if found is None:
        found = meter.measure([layers.choice(place_of)], outputs=True)
        rows.keep(name, found)
    base = found[0]
    if base.why:
        return None
    steps: list[list[Measurement | None]] = [[None] * shape[1] for _ in range(shape[0])]
    increases = np.full(shape, math.inf)
    for i, weight in enumerate(layers.weights):
        choices = []
        for k in wanted[i]:
            other = list(place_of)
            other[i] = k
            choices.append(layers.choice(other))
        own = rows.known(f"{name} {weight.name}", len(choices), outputs=True)
        if own is None:
            own = meter.measure(choices, outputs=True) if choices else []
            rows.keep(f"{name} {weight.name}", own)
        for k, one in zip(wanted[i], own, strict=True):
            if not one.why:
                steps[i][k] = one
                increases[i, k] = meter.increase(one, base).value
        steps[i][place_of[i]], increases[i, place_of[i]] = base, 0.0
    return base, steps, increases
