"""Checks of the options that all estimators share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from layerhess.errors import InputError, checked_integer


def is_number(value: Any) -> bool:
    """Whether the value is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_common(
    rel: Any, probes: Any, max_probes: Any, method: Any, least: dict[str, int], *, zero: bool = False
) -> None:
    """Check the options that every estimator has.

    Args:
        least: method -> the fewest products it needs. zero: ``rel`` may be 0.

    Raises:
        InputError: naming the argument and what to give instead.
    """
    if not isinstance(method, str) or method not in least:
        known = ", ".join(repr(name) for name in least)
        raise InputError(f"unknown method {method!r}", where="method", what_to_do=f"use one of {known}")
    if not (is_number(rel) and (0.0 < rel < math.inf or (zero and rel == 0.0))):
        raise InputError(f"rel is {rel!r}", where="rel", what_to_do="use a number > 0, such as 0.02")
    if probes is not None:
        checked_integer(probes, "probes", least[method])
    checked_integer(max_probes, "max_probes", least[method])
