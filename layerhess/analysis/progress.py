"""The events that a running analysis reports to its caller: a forecast, the state after each pass, and notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Forecast:
    """The expected cost of an analysis, reported before its first step.

    Attributes:
        gradient_seconds: one gradient over the whole data set.
        pass_seconds: one lockstep step: the products of all blocks (and the full one) over the whole data set.
        low, high: range of expected wall-clock seconds of the whole analysis.
        examples: examples in the data set (0 when unknown).
        per_example: part of ``high`` that grows with the number of examples, in seconds per example.
    """

    gradient_seconds: float
    pass_seconds: float
    low: float
    high: float
    examples: int
    per_example: float


@dataclass(frozen=True)
class Snapshot:
    """The state between two passes over the data.

    Attributes:
        passes: passes so far. products: Hessian-vector products so far (of one batch each).
        converged: number of spectra that are done. total: number of spectra.
        worst_block: the block furthest from its tolerance. worst_bound: its error bound over the tolerated one.
        elapsed: seconds so far. remaining: expected seconds left, NaN when unknown.
    """

    passes: int
    products: int
    converged: int
    total: int
    worst_block: str
    worst_bound: float
    elapsed: float
    remaining: float


class Progress(Protocol):
    """Receiver of events; pass one as ``analyze(..., progress=...)``."""

    def forecast(self, forecast: Forecast) -> None:
        """Called once, before the first step."""

    def update(self, snapshot: Snapshot) -> None:
        """Called after every pass over the data."""

    def note(self, sentence: str) -> None:
        """Called once for each thing the reader should know."""
