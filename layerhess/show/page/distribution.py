"""How curvature is distributed over decades: densities on a logarithmic axis, as lines of a chart."""

from __future__ import annotations

import math

import numpy as np

from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.linalg.functional_estimates import FunctionalEstimate
from layerhess.results.spectrum import AnalysisRecord
from layerhess.show import numbers
from layerhess.show.page.axis import LogAxis
from layerhess.show.page.counts import SCALE, Chart, Line

DECADES = 4.0  # of the axis of shares, down from the highest


def distribution(analysis: AnalysisRecord) -> Chart | None:
    """The chart of an analysis; None where no density was made on a logarithmic axis and finished.

    A line for each block, the whole model bold; dashed what is negative of the whole model, or of a single block.
    """
    found = {
        s.name: s.density
        for s in analysis.spectra()
        if s.density is not None and s.density.axis == "log" and s.density.finished and len(s.density.grid)
    }
    curves = [curve for d in found.values() for curve in (d.value, d.value_negative) if curve.any()]
    if not curves:
        return None
    peak = max(float(curve.max()) for curve in curves)
    up = LogAxis.over([peak, peak * 10.0**-DECADES])
    across = LogAxis.over([float(end) for d in found.values() for end in (d.grid[0], d.grid[-1])])
    whole = analysis.full.name if analysis.full is not None and analysis.full.name in found else None
    lines = []
    for name, density in found.items():
        lines.append(Line(name, _path(density.grid, density.value, across, up), name == whole))
        if name == whole or len(found) == 1:
            lines.append(Line(name, _path(density.grid, density.value_negative, across, up), False, limit=True))
    lines = sorted((line for line in lines if line.path), key=lambda line: line.whole)
    return Chart(
        lines,
        across.ticks(),
        [type(tick)(100.0 - tick.at, tick.label) for tick in up.ticks()],
        sentence=_sentence(found[whole]) if whole is not None else "",
    )


def _path(grid: Floats, curve: Floats, across: LogAxis, up: LogAxis) -> str:
    """A line through the points above the axis's lower end; it is lifted where the curve is below."""
    text, down = "", True
    for x, y in zip(grid, curve, strict=True):
        if not y > up.low:
            down = True
            continue
        text += f"{'M' if down else 'L'}{round(across.at(x) * SCALE / 100.0)} "
        text += f"{round((100.0 - up.at(y)) * SCALE / 100.0)}"
        down = False
    return text


def _sentence(density: DensityEstimate) -> str:
    """What share of the whole model's eigenvalues is too near 0 to be drawn, and what share is negative."""
    near = density.share(-density.floor, density.floor)
    below = density.share(below=-np.nextafter(density.floor, math.inf))
    floor = numbers.number(density.floor, 2)
    return (
        f"Of the whole model's eigenvalues {_told(near)} are smaller than {floor} in size; {_told(below)} are negative "
        "and larger."
    )


def _told(found: FunctionalEstimate) -> str:
    """A share with its error; what that leaves of it where it may be nothing."""
    value, error = found.value, found.standard_error
    if value < error < math.inf:
        return f"at most {numbers.share(min(1.0, value + 2.0 * error))} (95 %)"
    return numbers.share_with_error(value, error)
