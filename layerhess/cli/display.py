"""Shows a running analysis in a terminal: a forecast, notes and a line of progress, all on stderr."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from layerhess.analysis.estimate import CostEstimate
from layerhess.analysis.progress import Forecast, Snapshot
from layerhess.cli import lines
from layerhess.errors import LayerhessWarning
from layerhess.show.numbers import count, counted, duration, size, span, times

_SMALLER = 512  # number of examples suggested for a shorter run
_LONG = 60.0  # seconds from which on that is suggested


class Display:
    """A receiver of events (:class:`layerhess.analysis.progress.Progress`) that shows them on stderr.

    In a terminal a live line counts passes, products and converged spectra; elsewhere only the forecast and the notes
    are written. Use it as a context manager around the analysis.

    Args:
        quiet: show nothing.
        console: where to write; a console on stderr when None.
        offer_examples: mention ``--examples`` in the forecast of a long run.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None, offer_examples: bool = True) -> None:
        self.quiet = quiet
        self.console = console if console is not None else lines.console(sys.stderr)
        self.offer_examples = offer_examples
        self.heading = ""  # a line to write before the next one
        self._said: set[str] = set()
        self._live: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Display:
        if not self.quiet and self.console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=12),
                TextColumn("{task.description}", markup=False),
                console=self.console,
                transient=True,
            )
            self._task = self._live.add_task("reading the data and checking the products", total=None)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def forecast(self, forecast: Forecast) -> None:
        """Say what the analysis will cost, before its first step."""
        self.say(forecast_sentence(forecast, offer_examples=self.offer_examples))

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the live line."""
        if self._live is not None:
            self._live.update(
                self._task,
                total=snapshot.total,
                completed=snapshot.converged,
                description=progress_sentence(snapshot),
            )

    def passes(self, done: float, most: float, what: str) -> None:
        """Redraw the live line: forward passes so far, how many there will be at most, and for what."""
        if self.heading:
            self.say("")
        if self._live is not None:
            self._live.update(
                self._task, total=most, completed=done, description=f"{what}: {times(done)} of {times(most)} passes"
            )

    def note(self, sentence: str) -> None:
        """Write a note, once."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(f"note: {sentence}")

    def say(self, sentence: str) -> None:
        """Write one line, unless quiet; the heading before it, once."""
        heading, self.heading = self.heading, ""
        if not self.quiet:
            console = self._live.console if self._live is not None else self.console
            for line in filter(None, (heading, sentence)):
                console.print(Text(line))

    @contextmanager
    def with_warnings(self) -> Iterator[None]:
        """Show our own warnings as notes, once each, and all others as Python does."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", LayerhessWarning)
            default = warnings.showwarning

            def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
                if issubclass(category, LayerhessWarning):
                    self.note(str(message))
                else:
                    default(message, category, *rest, **named)

            warnings.showwarning = show
            yield


def forecast_sentence(forecast: Forecast, *, offer_examples: bool = True) -> str:
    """The cost in words.

    >>> forecast_sentence(Forecast(3.1, 9.0, 480, 840, 50_000, 0.0166))
    'one gradient takes 3.1 s; expect 8 to 14 min; --examples 512 would take up to 18 s'
    """
    text = f"one gradient takes {duration(forecast.gradient_seconds)}; expect {span(forecast.low, forecast.high)}"
    if not offer_examples or forecast.examples <= 2 * _SMALLER or forecast.high < _LONG or forecast.per_example <= 0:
        return text
    shorter = max(forecast.high - forecast.per_example * (forecast.examples - _SMALLER), forecast.gradient_seconds)
    return f"{text}; --examples {_SMALLER} would take up to {duration(shorter)}"


def cost_sentences(cost: CostEstimate) -> str:
    """An estimate, a line for each figure.

    >>> print(cost_sentences(CostEstimate(480.0, 11, 253, 6 << 30, 3 << 30, 3.1, True, 2, 50_000)))
    time     about 8 min, one gradient takes 3.1 s
    work     253 products in 11 passes over 50,000 examples
    memory   6.0 GiB at the peak, of each of 2 processes, which fits
    sent     3.0 GiB by each process
    """
    each = f", of each of {cost.world} processes" if cost.world > 1 else ""
    data = f" over {counted(cost.examples, 'example')}" if cost.examples else ""
    fits = "which fits" if cost.fits else "which is more than there is"
    told = [
        f"time     about {duration(cost.seconds)}, one gradient takes {duration(cost.gradient_seconds)}",
        f"work     {counted(cost.products, 'product')} in {counted(cost.passes, 'pass', 'passes')}{data}",
        f"memory   {size(cost.peak_bytes)} at the peak{each}, {fits}",
    ]
    if cost.sent_bytes:
        told.append(f"sent     {size(cost.sent_bytes)} by each process")
    return "\n".join([*told, *(f"note: {note}" for note in cost.notes)])


def progress_sentence(snapshot: Snapshot) -> str:
    """The state between two passes in one line.

    >>> progress_sentence(Snapshot(12, 264, 20, 23, "head.weight", 4.2, 31.0, 40.0))
    '20 of 23 converged; pass 12, 264 products; worst: head.weight, 4.2 x tol; 31 s, about 40 s left'
    """
    parts = [
        f"{snapshot.converged} of {snapshot.total} converged",
        f"pass {count(snapshot.passes)}, {count(snapshot.products)} products",
    ]
    if snapshot.worst_block and math.isfinite(snapshot.worst_bound):
        parts.append(f"worst: {snapshot.worst_block}, {times(snapshot.worst_bound)} x tol")
    left = f", about {duration(snapshot.remaining)} left" if math.isfinite(snapshot.remaining) else ""
    parts.append(duration(snapshot.elapsed) + left)
    return "; ".join(parts)
