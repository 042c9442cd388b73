"""How many directions bend: for each spectrum the number of eigenvalues above a threshold, as lines of a chart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from layerhess.linalg.stochastic.counts import band_of_counts, counts_above
from layerhess.results.spectrum import AnalysisRecord, Spectrum
from layerhess.show import numbers
from layerhess.show.page.axis import LogAxis, Tick

POINTS = 72  # of a line
DECADES = 5.0  # of the axis of eigenvalues, down from the largest
SCALE = 1000.0  # units of the chart's own coordinates, either way


@dataclass(frozen=True)
class Line:
    """One spectrum: its name, and an SVG path in 0 to 1,000 either way, the origin at the upper left.

    Attributes:
        whole: it is the whole model's. limit: it is what another line is held against.
    """

    block: str
    path: str
    whole: bool
    limit: bool = False


@dataclass(frozen=True)
class Chart:
    """The lines, and the ticks of both axes in per cent (of the height from above).

    Attributes:
        bands: areas beneath the lines. sentence: on what is seen.
    """

    lines: list[Line]
    x: list[Tick]
    y: list[Tick]
    bands: list[Line] = field(default_factory=list)
    sentence: str = ""


@dataclass(frozen=True)
class Counted:
    """Of one spectrum: the eigenvalues above a threshold, from ``least`` on, and the 95 % band of that number.

    The band has the spread over the random vectors and the error of their quadratures; NaN from one vector.
    """

    above: Callable[[float], float]
    band: Callable[[float], tuple[float, float]]
    least: float
    most: float


def chart(analysis: AnalysisRecord) -> Chart | None:
    """The chart of an analysis; None where no density and no whole spectrum has a positive eigenvalue."""
    found = {s.name: made for s in analysis.spectra() if (made := counted(s)) is not None}
    if not found or not any(s.density is not None for s in analysis.spectra()):
        return None
    high = max(made.most for made in found.values())
    low = max(min(made.least for made in found.values()), high * 10.0**-DECADES)
    across = LogAxis.over([low, high])
    grid = np.geomspace(low, high, POINTS)
    heights = {name: np.array([made.above(x) for x in grid[grid >= made.least]]) for name, made in found.items()}
    up = LogAxis.over([1.0, *(float(h.max()) for h in heights.values() if h.size)])
    whole = None if analysis.full is None else analysis.full.name
    lines = []
    for name, made in found.items():
        points = list(zip(grid[grid >= made.least], heights[name], strict=True))
        if path := _path(points, across, up):
            lines.append(Line(name, path, name == whole))
    lines.sort(key=lambda line: line.whole)  # the whole model is drawn over the others
    ticks = [Tick(100.0 - tick.at, tick.label) for tick in up.ticks()]
    return Chart(lines, across.ticks(), ticks, sentence=_sentence(analysis, found))


def counted(spectrum: Spectrum) -> Counted | None:
    """The counts of one spectrum: exact where all of it is known, else from its density's nodes and weights.

    With random vectors a density knows nothing finer than its bandwidth, so that the count begins at twice that.
    """
    whole, density, n = spectrum.spectrum, spectrum.density, spectrum.numel
    if whole is not None:
        largest = float(whole.max(initial=0.0))
        if largest <= 0.0:
            return None
        floor = max(2.0 * float(np.max(spectrum.error_bounds, initial=0.0)), largest * 10.0**-DECADES)

        def exact(x: float) -> float:
            return float((whole > x).sum())

        return Counted(exact, lambda x: (exact(x), exact(x)), floor, largest)
    if density is None or not density.probes or not density.finished:
        return None
    largest = max(float(np.max(density.nodes, initial=0.0)), 0.0 if spectrum.top is None else spectrum.top[0])
    floor = 2.0 * density.resolution
    if not 0.0 < floor < largest:
        return None

    def above(x: float) -> float:
        return float(counts_above(density, n, np.array([x]))[0].mean())

    def band(x: float) -> tuple[float, float]:
        if density.probes < 2:
            return math.nan, math.nan
        low, high = band_of_counts(density, n, np.array([x]))
        return max(0.0, float(low[0])), float(high[0])

    return Counted(above, band, floor, largest)


def _path(points: list[tuple[float, float]], across: LogAxis, up: LogAxis) -> str:
    """Steps from point to point; where the count falls below one half the line ends."""
    shown = [(across.at(x), 100.0 - up.at(y)) for x, y in points if y >= 0.5]
    if not shown:
        return ""
    text, last = "", -1
    for x, y in shown:
        left, height = round(x * SCALE / 100.0), round(y * SCALE / 100.0)
        text += f"M{left} {height}" if not text else f"H{left}" + (f"V{height}" if height != last else "")
        last = height
    return f"{text}V{round(SCALE)}"


def _sentence(analysis: AnalysisRecord, found: dict[str, Counted]) -> str:
    """How many directions of the whole model bend at all noticeably, with the error of that number."""
    full = analysis.full
    if full is None or full.name not in found or full.top is None or full.top[0] <= 0.0:
        return ""
    made = found[full.name]
    threshold = 10.0 ** round(math.log10(full.top[0] / 100.0))
    threshold = threshold if threshold >= made.least else 10.0 ** math.ceil(math.log10(made.least))
    if not made.least <= threshold < full.top[0]:
        return ""
    (low, high), count = made.band(threshold), made.above(threshold)
    if math.isnan(low):
        told = f"about {numbers.number(count, 2)} (one random vector: no error is known)"
    elif low == high:
        told = numbers.count(count)
    else:
        told = f"{numbers.count(math.floor(low))} to {numbers.count(math.ceil(high))} (95 %)"
    return (
        f"Of {numbers.counted(full.numel, 'direction')} of the whole model {told} bend more than "
        f"{numbers.number(threshold)}, λmax being {numbers.number(full.top[0])}."
    )
