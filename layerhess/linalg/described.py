"""What one sees of a record by typing its name: a few lines in a terminal, a small table in a notebook."""

from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import dataclass
from html import escape

import numpy as np

LINES, WIDTH = 6, 100  # of a repr, at most
MOST_ROWS = 20  # of a table in a notebook
NAME = 48  # characters of a name that are shown
CUT = "…"
_WRONG = "color:#d03a34;font-weight:600"
_CELL = "padding:2px 12px 2px 0;text-align:right;font-variant-numeric:tabular-nums"
_LEFT = "padding:2px 12px 2px 0;text-align:left"


@dataclass(frozen=True)
class Description:
    """A record in words.

    Attributes:
        title: what it is, its value and its error. facts: further lines, the most important first.
        alarm: what is not as it should be, in capitals; empty where all is well.
        columns, rows: a table for notebooks, its first column left-aligned; empty where there is nothing to list.
        more: how many further rows there are.
    """

    title: str
    facts: tuple[str, ...] = ()
    alarm: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    more: int = 0


class Described:
    """A record that says what it holds, whatever that is: its repr is short, and never raises."""

    def _describe(self) -> Description:
        raise NotImplementedError

    def __repr__(self) -> str:
        """At most six lines of at most 100 columns."""
        return as_text(_described(self))

    def _repr_html_(self) -> str:
        """The same and a table, escaped, in the notebook's own colours."""
        return as_html(_described(self))


def _described(record: Described) -> Description:
    # A record that was made by hand may hold anything. Who types its name is looking for the mistake.
    try:
        with np.errstate(all="ignore"):  # ends of intervals near the limits of float64
            return record._describe()
    except Exception as error:
        return Description(type(record).__name__, (f"{type(error).__name__}: {error}",), "CANNOT BE SHOWN")


def as_text(told: Description) -> str:
    """At most six lines of at most 100 columns; what is left out is marked.

    >>> print(as_text(Description("Trace 3.0 ± 0.5", ("16 random vectors",), "NOT CONVERGED")))
    Trace 3.0 ± 0.5: NOT CONVERGED
      16 random vectors
    """
    title = plain(told.title) + (f": {plain(told.alarm)}" if told.alarm else "")
    lines = textwrap.wrap(title, WIDTH, subsequent_indent="    ", max_lines=2, placeholder=f" {CUT}") or [""]
    if len(lines) > 1 and told.alarm and plain(told.alarm) not in " ".join(line.strip() for line in lines):
        lines = [*textwrap.wrap(plain(told.title), WIDTH, max_lines=1, placeholder=f" {CUT}"), f"  {plain(told.alarm)}"]
    for fact in told.facts:
        room = LINES - len(lines)
        if room > 0:
            lines += textwrap.wrap(
                plain(fact), WIDTH, initial_indent="  ", subsequent_indent="    ", max_lines=room,
                placeholder=f" {CUT}",
            )  # fmt: skip
    return "\n".join(cut(line, WIDTH) for line in lines)


def as_html(told: Description) -> str:
    """A fragment of HTML without anything that runs or is fetched."""
    alarm = f': <span style="{_WRONG}">{escape(plain(told.alarm))}</span>' if told.alarm else ""
    facts = "".join(f"<div>{escape(plain(fact))}</div>" for fact in told.facts)
    return (
        f'<div style="line-height:1.5"><div><b>{escape(plain(told.title))}</b>{alarm}</div>{facts}{_table(told)}</div>'
    )


def _table(told: Description) -> str:
    if not told.rows:
        return ""
    shown, hidden = told.rows[:MOST_ROWS], max(0, len(told.rows) - MOST_ROWS) + told.more

    def line(tag: str, cells: tuple[str, ...]) -> str:
        made = (f'<{tag} style="{_CELL if i else _LEFT}">{escape(plain(text))}</{tag}>' for i, text in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    last = f'<tr><td colspan="{len(told.columns)}" style="{_LEFT}">{CUT} {hidden} more</td></tr>' if hidden else ""
    return (
        f'<table style="border-collapse:collapse;margin-top:6px"><thead>{line("th", told.columns)}</thead>'
        f"<tbody>{''.join(line('td', row) for row in shown)}{last}</tbody></table>"
    )


def plain(text: object) -> str:
    r"""A text without characters that would move the cursor, colour the terminal or break the line.

    >>> plain("weight\x1b[31m\n")
    'weight\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def called(name: object, most: int = NAME) -> str:
    """A name as it may stand in a sentence: plain, and without its middle where it is long.

    >>> called("encoder.layers.11.attention.output.dense.weight", 24)
    'encoder…put.dense.weight'
    """
    text = plain(name)
    return text if len(text) <= most else f"{text[: most // 3 - 1]}{CUT}{text[-(most - most // 3) :]}"


def cut(text: str, width: int) -> str:
    """At most ``width`` columns of a terminal, in which some characters take two and others none."""
    if sum(map(_columns, text)) <= width:
        return text
    kept, room = [], width - 1
    for character in text:
        room -= _columns(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + CUT


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
