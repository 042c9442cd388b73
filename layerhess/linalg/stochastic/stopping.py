"""How many random probes to use: after the first sixteen, as many as their variance requires."""

from __future__ import annotations

import math

MINIMUM = 16  # probes before a standard error is believed
ROWS_BYTES = 1 << 28  # of the vectors asked for at a time


def probes_needed(count: int, excess: float) -> int:
    """The total number of probes that the variance requires, at least ``count``.

    The standard error falls like 1 / sqrt(count). Five per cent more, because the variance is itself an estimate, and
    every further check is another chance to stop on a variance that is too small by luck.

    Args:
        count: probes so far. excess: standard error over the tolerated one (infinite where nothing is tolerated).

    >>> probes_needed(16, 0.9), probes_needed(16, 2.0)
    (16, 68)
    """
    if excess <= 1.0:
        return count
    return 1 << 62 if excess > 1e6 else math.ceil(1.05 * count * excess**2)


def next_target(count: int, excess: float, limit: int) -> int:
    """The number of probes at which to check again: what is needed, at most four times ``count``.

    A variance from few probes can be far too large; without the cap it would cost the whole budget.

    >>> next_target(16, 2.0, 1000), next_target(16, 10.0, 1000), next_target(16, 10.0, 40)
    (64, 64, 40)
    """
    return min(max(probes_needed(count, excess), min(count + 1, limit)), 4 * count, limit)


def rows_at_a_time(n: int) -> int:
    """How many (n,) float64 vectors to ask for in one pass: at most 64, fewer where they would fill the memory."""
    return max(1, min(64, ROWS_BYTES // (8 * n)))


def excess_of(error: float, tolerance: float) -> float:
    """Error over tolerance; 0 where there is no error, infinite where there is one and none is tolerated."""
    if error == 0.0:
        return 0.0
    return error / tolerance if tolerance > 0.0 else math.inf
