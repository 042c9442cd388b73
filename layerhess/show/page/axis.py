"""A logarithmic axis in per cent of its width, shared by all rows of a table or by the lines of a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_DECADES = 9  # an axis is no longer than that; what is smaller lies at its left end
MOST_LABELS = 7
LETTER = 2.7  # width of one, in per cent of the narrowest column
MARGIN = 0.04  # of the width, left free at both ends


@dataclass(frozen=True)
class Tick:
    """A place on the axis in per cent, and what is written there ("" for a line without a label)."""

    at: float
    label: str


@dataclass(frozen=True)
class LogAxis:
    """From ``low`` to ``high``, both above zero.

    >>> axis = LogAxis.over([0.01, 1.0])
    >>> [round(axis.at(value)) for value in (0.01, 0.1, 1.0, 0.0, 50.0)]
    [4, 50, 96, 0, 100]
    >>> [(round(tick.at), tick.label) for tick in axis.ticks()]
    [(4, '0.01'), (50, '0.1'), (96, '1')]
    >>> [tick.label for tick in LogAxis.over([0.3, 6.0]).ticks()]
    ['0.5', '1', '2', '5']
    >>> [tick.label for tick in LogAxis.over([20.0, 6000.0]).ticks()]
    ['20', '50', '100', '200', '', '1,000', '', '5,000']
    """

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> LogAxis:
        """The axis on which all these have a place; values that are not positive and finite do not count."""
        sizes = [value for value in values if 0.0 < value < math.inf]
        high = max(sizes, default=1.0)
        low = max(min(sizes, default=0.1), high * 10.0**-MOST_DECADES)
        if high < 10.0 * low:
            low, high = low / 3.0, high * 3.0
        return cls(low, high)

    def at(self, value: float) -> float:
        """Where ``value`` lies, in per cent; 0 and 100 for what lies beyond the ends."""
        if not value > 0.0:
            return 0.0
        if math.isinf(value):
            return 100.0
        part = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return min(100.0, max(0.0, 100.0 * (MARGIN + (1.0 - 2.0 * MARGIN) * part)))

    def ticks(self) -> list[Tick]:
        """The powers of ten; with many of them only every second or third has a label."""
        powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
        step = max(1, math.ceil(len(powers) / MOST_LABELS))
        labelled = set(powers[::-1][::step])
        if len(powers) < 3:  # else there would be hardly a number to read a place by
            between = [(k, m) for k in range(powers.start - 1, powers.stop) for m in (1, 2, 5)]
            shown = [(k, m) for k, m in between if self.low * (1 - 1e-9) <= m * 10.0**k <= self.high * (1 + 1e-9)]
            return _apart([Tick(self.at(m * 10.0**k), times_power_of_ten(m, k)) for k, m in shown])
        return [Tick(self.at(10.0**k), power_of_ten(k) if k in labelled else "") for k in powers]


def _apart(ticks: list[Tick]) -> list[Tick]:
    """Those labels that do not run into each other in a narrow column, powers of ten first; all lines stay."""
    kept: list[Tick] = []
    for tick in sorted(ticks, key=lambda tick: "1" not in tick.label):
        if all(abs(tick.at - other.at) > LETTER * (len(tick.label) + len(other.label) + 1) / 2 for other in kept):
            kept.append(tick)
    return [tick if tick in kept else Tick(tick.at, "") for tick in ticks]


def times_power_of_ten(digit: int, exponent: int) -> str:
    """A digit times a power of ten.

    >>> times_power_of_ten(2, -2), times_power_of_ten(5, 3), times_power_of_ten(5, 6)
    ('0.02', '5,000', '5e6')
    """
    return power_of_ten(exponent).replace("1", str(digit), 1)


def power_of_ten(exponent: int) -> str:
    """A power of ten as people write it.

    >>> power_of_ten(-2), power_of_ten(3), power_of_ten(-7), power_of_ten(6)
    ('0.01', '1,000', '1e−7', '1e6')
    """
    if -4 <= exponent < 0:
        return f"{10.0**exponent:.{-exponent}f}"
    if 0 <= exponent <= 4:
        return f"{10**exponent:,}"
    return f"1e{exponent}".replace("-", "−")
