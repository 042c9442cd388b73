"""Formats numbers for people: those of :mod:`layerhess.linalg.numbers`, factors, spans of time and sizes."""

from __future__ import annotations

from layerhess.linalg.numbers import (
    SIGNIFICANT,
    count,
    counted,
    duration,
    number,
    rounded_up,
    share,
    share_with_error,
    up_to,
    with_bound,
    with_reach,
)

__all__ = [
    "SIGNIFICANT",
    "count",
    "counted",
    "duration",
    "number",
    "rounded_up",
    "share",
    "share_with_error",
    "size",
    "span",
    "times",
    "up_to",
    "with_bound",
    "with_reach",
]


def times(factor: float) -> str:
    """A factor in two digits.

    >>> times(2.6481), times(4711.3)
    ('2.6', '4,700')
    """
    return f"{float(f'{factor:.2g}'):,g}" if factor < 1e6 else f"{factor:.1e}"


def span(low: float, high: float) -> str:
    """A range of seconds in one unit.

    >>> span(480, 840), span(2, 2.04), span(30, 200)
    ('8 to 14 min', '2.0 s', '30 s to 3.3 min')
    """
    first, last = duration(low), duration(high)
    if first == last:
        return first
    if first.split()[1] == last.split()[1]:
        return f"{first.split()[0]} to {last}"
    return f"{first} to {last}"


def size(nbytes: float) -> str:
    """Bytes in the unit a person would use.

    >>> size(2_500_000), size(6 << 30)
    ('2.4 MiB', '6.0 GiB')
    """
    amount, unit = (nbytes / 2**30, "GiB") if nbytes >= 2**30 else (nbytes / 2**20, "MiB")
    return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:,.0f} {unit}"
