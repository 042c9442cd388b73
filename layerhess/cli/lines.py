"""Sentences as lines of a terminal: wrapped at its width, an error in four at most; in a pipe or file, one line."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import IO, Literal

from rich.console import Console

from layerhess.errors import MORE

WIDTH = 80  # columns of a terminal that does not say
MOST = 4  # lines of an error
UNLIMITED = 1_000_000
LEAST = 40  # characters of each part of an error that are kept


def width_of(stream: IO[str]) -> int | None:
    """Columns of the terminal that shows ``stream`` (COLUMNS may say otherwise); None for a pipe or a file.

    Programs read those by the line, and inherit COLUMNS from whoever started them.
    """
    return shutil.get_terminal_size((WIDTH, 24)).columns if stream.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """The text with no line longer than ``width``, but for words that are.

    >>> print(wrapped("note: one gradient takes 3.1 s", 20))
    note: one gradient
      takes 3.1 s
    """
    if width is None:
        return text
    lines = [part for line in text.splitlines() for part in (_lines(line, width, "  ") or [""])]
    return "\n".join(lines)


def fitted(write: Callable[[int], str], width: int | None, most: int = MOST) -> str:
    """A sentence as ``most`` lines at most, of ``width`` columns; whole, and one line, where there is no width.

    Args:
        write: characters -> the sentence, shortened to so many.
    """
    if width is None:
        return " ".join(write(UNLIMITED).split())
    room = width * most
    while True:
        lines = _lines(" ".join(write(room).split()), width, "")
        if len(lines) <= most or room <= width:
            return "\n".join(lines[:most])
        room -= max(4, sum(map(len, lines[most:])) // 2)


def shortened(parts: Sequence[str], room: int) -> str:
    """The parts as one sentence, with the ends of the longest ones left out until it has at most ``room`` characters.

    >>> shortened(["interrupted", "the partial result is in " + "long/" * 20], 60)
    'interrupted the partial result is in (...)'
    """
    kept = list(parts)
    while len(" ".join(kept)) > room:
        longest = max(range(len(kept)), key=lambda i: len(kept[i]))
        text = kept[longest].removesuffix(MORE)
        size = max(LEAST, len(text) - (len(" ".join(kept)) - room) - len(MORE))
        if size >= len(text):
            break
        kept[longest] = text[:size].rsplit(" ", 1)[0] + MORE
    return " ".join(kept)


def plain(text: str) -> None:
    """Print a text on stdout, wrapped where that is a terminal."""
    print(wrapped(text, width_of(sys.stdout)), flush=True)


def console(stream: IO[str]) -> Console:
    """A console of rich that wraps where ``stream`` is a terminal, and has no colours under NO_COLOR."""
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), color_system=colours)


def _lines(text: str, width: int, indent: str) -> list[str]:
    # Paths are to be copied: only an error, which has a limit, divides them.
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=not indent, break_on_hyphens=False)
