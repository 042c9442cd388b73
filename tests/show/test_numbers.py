"""How numbers are written: a value with its bound contains what it means, and bounds are never rounded down."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerhess.show import numbers


def read_back(text: str) -> tuple[Fraction, Fraction]:
    """Value and bound of a text, exactly as a reader would take them."""
    inner = re.fullmatch(r"\((.+) ± (.+)\)e([+-]\d+)", text)
    if inner:
        scale = Fraction(10) ** int(inner[3])
        return Fraction(inner[1]) * scale, Fraction(inner[2]) * scale
    value, bound = text.split(" ± ")
    return Fraction(value), Fraction(bound)


@given(
    st.floats(-1e300, 1e300).filter(lambda v: abs(v) > 1e-300),
    st.floats(-6.9, 3.0),
    st.floats(1.0, 10.0, exclude_max=True),
)
@example(9.9999, -4.0, 9.99)
@example(0.99999, -4.0, 1.0)
@example(-999999.5, -6.0, 5.0)
def test_the_interval_shown_contains_the_interval_meant(value: float, power: float, mantissa: float) -> None:
    bound = abs(value) * mantissa * 10**power
    if not 1e-300 < bound < 1e300:
        return
    shown, radius = read_back(numbers.with_bound(value, bound))
    slack = Fraction(bound) / 10**6
    assert shown - radius <= Fraction(value) - Fraction(bound) + slack
    assert shown + radius >= Fraction(value) + Fraction(bound) - slack
    assert radius <= Fraction(bound) * Fraction(13, 10), "and is not much wider"


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (0.0, 0.0, "0 ± 0"),
        (0.0, 2.04e-9, "0 ± 2.1e-09"),
        (122.0322496817, 1.03e-12, "122.032250 ± 1.1e-12"),
        (20.0, 0.0, "20 ± 0"),
        (3.0, float("nan"), "3 ± unknown"),
        (float("nan"), 1.0, "-"),
        (1.5, 40.0, "2 ± 41"),
        (1234567.0, 1000.0, "(1.2346 ± 0.0011)e+06"),
        (-0.1662199, 1.6e-4, "-0.16622 ± 0.00017"),
    ],
)
def test_values_and_bounds_read_well(value: float, bound: float, text: str) -> None:
    assert numbers.with_bound(value, bound) == text


@given(st.floats(1e-300, 1e300))
def test_a_bound_is_never_rounded_down(bound: float) -> None:
    shown = float(numbers.rounded_up(bound))
    assert bound <= shown <= 1.11 * bound
