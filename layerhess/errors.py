"""The exceptions and the warning of layerhess; each says what is wrong, where, and what to do."""

from __future__ import annotations

from numbers import Integral
from typing import Any


class LayerhessError(Exception):
    """Common parent of our exceptions; has ``where`` and ``what_to_do`` in addition to the message.

    Args:
        message: one sentence saying what is wrong.
        where: the batch, block, module or argument concerned (may be empty).
        what_to_do: one sentence saying what to do (may be empty).
    """

    def __init__(self, message: str, *, where: str = "", what_to_do: str = "") -> None:
        self.message = message
        self.where = where
        self.what_to_do = what_to_do
        parts = [message.rstrip(".") + "."]
        if where:
            parts.append(f"Where: {where.rstrip('.')}.")
        if what_to_do:
            parts.append(f"What to do: {what_to_do.rstrip('.')}.")
        super().__init__(" ".join(parts))


class InputError(LayerhessError, ValueError):
    """The input cannot be used: nothing was computed and nothing was changed.

    >>> try:
    ...     raise InputError("tol must be positive", where="tol=-1", what_to_do="use for example tol=1e-3")
    ... except ValueError as error:
    ...     print(error)
    tol must be positive. Where: tol=-1. What to do: use for example tol=1e-3.
    """


class CheckError(LayerhessError, RuntimeError):
    """A self-check failed: the number asked for would have been wrong, so none is given."""


class LayerhessWarning(UserWarning):
    """Something the reader of the numbers should know, and that did not stop the analysis."""


def checked_integer(value: Any, name: str, least: int) -> int:
    """The argument ``name`` as an int; NumPy's integers are accepted.

    Raises:
        InputError: it is not an integer, or smaller than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} is {value!r}", where=name, what_to_do=f"use an integer >= {least}")
    return int(value)
