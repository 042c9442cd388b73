"""Curves of a monitor's history: the largest eigenvalue of every layer against the step of the training."""

from __future__ import annotations

import math

from layerhess.results.history import History
from layerhess.results.spectrum import FULL_NAME
from layerhess.show.page.axis import LogAxis, Tick
from layerhess.show.page.counts import SCALE, Chart, Line

MOST_TICKS = 7
SHARPNESS, LIMIT = "preconditioned sharpness", "threshold"  # of the whole model


def curves(history: History) -> Chart | None:
    """The largest eigenvalues over the steps, in bands as wide as their bounds; None where none is positive."""
    found = {name: _values(history, name, "lambda_max", "bound") for name in history.blocks}
    found = {name: points for name, points in found.items() if points}
    return _drawn(found, history, whole=FULL_NAME) if found else None


def threshold(history: History) -> Chart | None:
    """The preconditioned sharpness and the optimizer's threshold; None where no optimizer was watched."""
    parts = {
        SHARPNESS: _values(history, FULL_NAME, "preconditioned", "preconditioned_bound"),
        LIMIT: _values(history, FULL_NAME, "threshold", ""),
    }
    return _drawn(parts, history, whole=SHARPNESS, limit=LIMIT) if all(parts.values()) else None


Values = list[tuple[int, float, float]]  # step, value, bound


def _values(history: History, block: str, name: str, bound: str) -> Values:
    found = []
    for point in history.points:
        reading = point.readings.get(block)
        value = math.nan if reading is None else getattr(reading, name)
        if math.isfinite(value) and value > 0.0:
            found.append((point.step, value, getattr(reading, bound) if bound else 0.0))
    return found


def _drawn(found: dict[str, Values], history: History, whole: str, limit: str | None = None) -> Chart:
    up = LogAxis.over(value for points in found.values() for _, value, _ in points)
    first, last = history.points[0].step, history.points[-1].step
    span = max(1, last - first)

    def at(step: int, value: float) -> tuple[int, int]:
        return round(SCALE * (step - first) / span), round(SCALE * (1.0 - up.at(value) / 100.0))

    lines, bands = [], []
    for name, points in found.items():
        corners = [at(step, value) for step, value, _ in points]
        path = "M" + "L".join(f"{x} {y}" for x, y in corners)
        lines.append(Line(name, path if len(corners) > 1 else f"{path}h0", name == whole, name == limit))
        high = [at(step, value + bound) for step, value, bound in points]
        low = [at(step, max(value - bound, 0.0)) for step, value, bound in points]
        bands.append(Line(name, "M" + "L".join(f"{x} {y}" for x, y in [*high, *low[::-1]]) + "z", name == whole))
    lines.sort(key=lambda line: line.block == FULL_NAME)
    ticks = [Tick(100.0 - tick.at, tick.label) for tick in up.ticks()]
    return Chart(lines, _steps(first, last), ticks, bands)


def _steps(first: int, last: int) -> list[Tick]:
    """Round numbers of steps.

    >>> [(round(tick.at), tick.label) for tick in _steps(0, 1000)]
    [(0, '0'), (20, '200'), (40, '400'), (60, '600'), (80, '800'), (100, '1,000')]
    """
    span = max(1, last - first)
    unit = 10 ** max(0, math.floor(math.log10(span)) - 1)
    step = next(unit * k for k in (1, 2, 5, 10, 20, 50, 100) if span / (unit * k) < MOST_TICKS)
    start = math.ceil(first / step) * step
    return [Tick(100.0 * (number - first) / span, f"{number:,}") for number in range(start, last + 1, step)]
