"""A monitor's history made by hand."""

from __future__ import annotations

from layerhess.results.history import History
from layerhess.results.point import Point, Reading


def history(optimizer: bool = True, points: int = 12, names: tuple[str, ...] = ("a.weight", "b.weight")) -> History:
    """A sharpness that falls by half at every point, of two layers and the whole model."""
    made = History(settings={"model": "Net", "every": 10}, optimizer=optimizer, share=0.04, notes=["a note"])
    for index in range(points):
        readings = {}
        for place, name in enumerate((*names, "(full)")):
            value = 10.0 * (place + 1) * 0.5**index
            own = {
                "preconditioned": 3 * value,
                "preconditioned_bound": 0.1,
                "threshold": 50.0,
                "ratio": 3 * value / 50.0,
            }
            shown = own if optimizer and name == "(full)" else {}
            readings[name] = Reading(name, value, 0.01 * value, 1.2, 4, 1, **shown)
        made.points.append(Point(10 * (index + 1), readings, 0.1))
    return made
