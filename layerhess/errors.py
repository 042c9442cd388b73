"""The exceptions and the warning of layerhess; each says what is wrong, where, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral
from typing import Any

LONGEST = 400  # characters of an error's text
MORE = " (...)"
SHORTEST = 40  # characters of a part that are left


class LayerhessError(Exception):
    """Common parent of our exceptions; has ``where`` and ``what_to_do`` in addition to the message.

    Args:
        message: one sentence saying what is wrong.
        where: the batch, block, module or argument concerned (may be empty).
        what_to_do: one sentence saying what to do (may be empty).
        details: more lines, such as one for each block that failed; not part of the text.

    The text is cut to 400 characters; ``details`` then begins with the whole of it.
    """

    def __init__(self, message: str, *, where: str = "", what_to_do: str = "", details: Sequence[str] = ()) -> None:
        self.message = message
        self.where = where
        self.what_to_do = what_to_do
        whole = _sentence(message, where, what_to_do)
        cut = len(whole) > LONGEST
        self.details: tuple[str, ...] = (*([whole] if cut else []), *details)
        super().__init__(self.within(LONGEST) if cut else whole)

    if sys.version_info < (3, 11):

        def __str__(self) -> str:
            """With the sentences that were added, which a traceback of Python 3.10 leaves out."""
            return " ".join([super().__str__(), *notes_of(self)])

    def within(self, most: int) -> str:
        """The text, cut to about so many characters: the ends of its longest parts are left out."""
        return _sentence(*_shortened([self.message, self.where, self.what_to_do], most))


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


class ProcessError(LayerhessError, RuntimeError):
    """Another process of the group failed, died or did not answer; the message names its rank."""


def _sentence(message: str, where: str, what_to_do: str) -> str:
    parts = [message.rstrip(".") + "."]
    if where:
        parts.append(f"Where: {where.rstrip('.')}.")
    if what_to_do:
        parts.append(f"What to do: {what_to_do.rstrip('.')}.")
    return " ".join(parts)


def _shortened(parts: list[str], most: int) -> list[str]:
    """The parts with the ends of the longest ones left out, until the sentence fits."""
    excess = len(_sentence(*parts)) - most
    while excess > 0 and max(map(len, parts)) > SHORTEST + len(MORE) + 2:
        longest = max(range(len(parts)), key=lambda i: len(parts[i]))
        others = max(len(part) for i, part in enumerate(parts) if i != longest)
        room = max(len(parts[longest]) - excess, others - 1, SHORTEST) - len(MORE)
        kept = parts[longest].removesuffix(MORE)[: min(room, len(parts[longest]) - len(MORE) - 2)]
        words = kept.rsplit(" ", 1)[0]  # a word without end is divided
        parts = [*parts[:longest], (words if 2 * len(words) > len(kept) else kept) + MORE, *parts[longest + 1 :]]
        excess = len(_sentence(*parts)) - most
    return parts


class LayerhessWarning(UserWarning):
    """Something the reader of the numbers should know, and that did not stop the analysis."""


def add_note(error: BaseException, sentence: str) -> None:
    """Add a sentence to an exception of the user's code; Python shows it below the message (from 3.11 on)."""
    if hasattr(error, "add_note"):
        error.add_note(sentence)
    else:  # Python 3.10
        error.__notes__ = [*notes_of(error), sentence]


def notes_of(error: BaseException) -> list[str]:
    """The sentences that were added to an exception."""
    return [str(note) for note in getattr(error, "__notes__", [])]


def first_line(error: BaseException, most: int = 120) -> str:
    """The beginning of what an exception says; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def checked_integer(value: Any, name: str, least: int) -> int:
    """The argument ``name`` as an int; NumPy's integers are accepted.

    Raises:
        InputError: it is not an integer, or smaller than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} is {value!r}", where=name, what_to_do=f"use an integer >= {least}")
    return int(value)
