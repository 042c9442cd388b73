"""Formats numbers for people: a value with its bound, a count, a share, a duration."""

from __future__ import annotations

import math

SIGNIFICANT = 9  # digits of a value shown at most, however small its bound


def number(value: float, digits: int = 4) -> str:
    """A plain number with ``digits`` significant digits; "-" for NaN.

    >>> number(0.0123456), number(1234567.0), number(float("nan"))
    ('0.01235', '1.235e+06', '-')
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return f"{value:.{digits}g}"


def with_bound(value: float, bound: float) -> str:
    """A value and its absolute bound, "11.540 ± 0.012".

    The bound has two digits and is rounded up so that the interval shown contains ``[value - bound, value + bound]``. A
    bound below the ninth digit of the value is written separately, after the nine digits.

    >>> with_bound(11.5399, 0.0113), with_bound(-2.5e-7, 1.3e-9), with_bound(3.0, float("inf"))
    ('11.540 ± 0.012', '(-2.500 ± 0.013)e-07', '3 ± unknown')
    >>> with_bound(0.12345678, 1.2e-7), with_bound(122.0322496817, 1e-12)
    ('0.12345678 ± 1.2e-07', '122.032250 ± 1.0e-12')
    """
    if not math.isfinite(value):
        return number(value)
    if math.isnan(bound) or math.isinf(bound):
        return f"{number(value)} ± unknown"
    if bound == 0.0 or value == 0.0:
        return f"{value:.{SIGNIFICANT}g} ± {rounded_up(bound)}"
    size = max(abs(value), bound)
    exponent = math.floor(math.log10(size))
    shift = exponent if exponent < -3 or exponent > 5 else 0
    scaled, radius = value / 10.0**shift, bound / 10.0**shift
    if not (math.isfinite(scaled) and 0.0 < radius < math.inf):  # subnormal numbers
        return f"{value:.3g} ± {rounded_up(bound)}"
    decimals = 1 - math.floor(math.log10(radius))
    most = SIGNIFICANT - 1 - (exponent - shift)
    if decimals > most:
        return f"{_fixed(value, most, shift)} ± {rounded_up(bound)}"
    if decimals > 6 and not shift:
        return f"{value:.{decimals}f} ± {rounded_up(bound + abs(value - round(value, decimals)))}"
    decimals = max(decimals, 0)
    unit = 10.0**-decimals
    shown = round(scaled, decimals)
    outer = math.ceil((radius + abs(scaled - shown)) / unit * (1 - 1e-12)) * unit
    text = f"{shown:.{decimals}f} ± {outer:.{decimals}f}"
    return f"({text})e{shift:+03d}" if shift else text


def standard(value: float, error: float) -> str:
    """A value and its standard error; alone where that is zero, with "unknown" where there is none.

    >>> standard(1.5, 0.25), standard(2.0, 0.0), standard(2.0, float("nan"))
    ('1.50 ± 0.25', '2', '2 ± unknown')
    """
    return number(value, 6) if error == 0.0 else with_bound(value, error)


def up_to(value: float, bound: float, end: float) -> str:
    """What is not excluded beyond a value and its bound: "up to 1.146", rounded outward; "" where the bound covers it.

    Args:
        end: the upper end of the interval, or, below the value, the lower one.

    >>> up_to(1.1236, 0.0008, 1.14553), up_to(-2.0, 0.01, -2.3001), up_to(1.0, 0.1, 1.1), up_to(1.0, 0.1, float("inf"))
    ('up to 1.146', 'down to -2.301', '', 'up to anything')
    """
    sign = 1.0 if end > value else -1.0
    if math.isnan(end) or math.isnan(bound) or sign * (end - value) <= bound + 1e-14 * abs(value):
        return ""
    word = "up to" if sign > 0.0 else "down to"
    if math.isinf(end):
        return f"{word} anything"
    step = 10.0 ** (math.floor(math.log10(max(abs(end), abs(value)))) - 3)
    return f"{word} {number(sign * math.ceil(sign * end / step * (1.0 - 1e-12)) * step)}"


def with_reach(value: float, bound: float, end: float) -> str:
    """A value, its bound and what is not excluded beyond: see :func:`with_bound` and :func:`up_to`.

    >>> with_reach(1.1236, 0.0008, 1.14553)
    '1.12360 ± 0.00080, up to 1.146'
    """
    beyond = up_to(value, bound, end)
    return with_bound(value, bound) + (f", {beyond}" if beyond else "")


def rounded_up(bound: float) -> str:
    """A bound in scientific notation with two digits, rounded up.

    >>> rounded_up(1.01e-13), rounded_up(0.0)
    ('1.1e-13', '0')
    """
    if bound == 0.0 or not math.isfinite(bound):
        return number(bound)
    text = f"{bound:.1e}"
    return text if float(text) >= bound else f"{bound + 0.05 * 10.0 ** math.floor(math.log10(bound)):.1e}"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use.

    >>> duration(0.0421), duration(3.14), duration(95), duration(5400)
    ('0.042 s', '3.1 s', '1.6 min', '1.5 h')
    """
    if math.isnan(seconds):
        return "unknown"
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.2g} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.2g} h" if seconds < 36000 else f"{seconds / 3600:.0f} h"


def share(part: float) -> str:
    """A share of one as a percentage.

    >>> share(0.5), share(0.0312), share(0.00004), share(0.0)
    ('50 %', '3.1 %', '< 0.1 %', '0 %')
    """
    if math.isnan(part):
        return "-"
    if 0 < part < 0.001:
        return "< 0.1 %"
    return f"{100 * part:.2g} %" if part < 0.0995 else f"{100 * part:.0f} %"


def share_with_error(part: float, error: float) -> str:
    """A share of one and its absolute error as percentages; the error is rounded up, to a tenth of a per cent at least.

    >>> share_with_error(0.4312, 0.0181), share_with_error(0.4312, 1e-6), share_with_error(0.4312, float("inf"))
    ('43.1 ± 1.9 %', '43.1 ± 0.1 %', '43 % ± unknown')
    """
    if math.isnan(part) or error == 0.0:
        return share(part)
    if not math.isfinite(error):
        return f"{share(part)} ± unknown"
    value, spread = 100 * part, 100 * error
    if abs(value - round(value, 1)) + spread <= 0.1:  # a tenth is enough
        return f"{value:.1f} ± 0.1 %"
    return f"{with_bound(value, max(spread, 0.1))} %"


def count(value: int | float) -> str:
    """A count with thousands separated; whole floats as integers.

    >>> count(1234567), count(1437.0)
    ('1,234,567', '1,437')
    """
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.6g}"


def counted(value: int, noun: str, plural: str = "") -> str:
    """A count and its noun.

    >>> counted(1, "pass", "passes"), counted(1234, "block")
    ('1 pass', '1,234 blocks')
    """
    return f"{count(value)} {noun if value == 1 else plural or noun + 's'}"


def _fixed(value: float, decimals: int, shift: int) -> str:
    if shift:
        return f"{value:.{SIGNIFICANT - 1}e}"
    return f"{value:.{max(decimals, 0)}f}"
