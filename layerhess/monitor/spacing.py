"""Spaces the points of a monitor, so that its own time is at most a given share of the training's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from layerhess.curvature.counters import Counters

REMEMBERED = 3  # latest points: the next one is expected to take as long as the longest of them
SPARE = 1.3  # times that must be affordable, once points were timed: machines are busy with other things too


class Spacing:
    """Own time against training time.

    The training's time is all that passes from the first step on outside of the monitor.

    Args:
        every: a point is made where the number of the step passes a multiple of it, never more often. overhead: own
            time over the training's that is allowed; None makes a point at every such step. clock: returns seconds.

    Attributes:
        own: seconds spent here.
    """

    def __init__(self, every: int, overhead: float | None, clock: Callable[[], float] | None = None) -> None:
        self.every, self.overhead = every, overhead
        self._clock = clock or Counters().clock
        self._began: float | None = None
        self._steps = 0
        self.own = 0.0
        self._entered: float | None = None
        self._points, self._checks, self._noted = [0.0], 0.0, False

    def begin(self) -> None:
        """A step of the training; the clock starts at the first one."""
        self._steps += 1
        if self._began is None:
            self._began = self._clock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the body as own time."""
        self._entered = self._clock()
        try:
            yield
        finally:
            self.own += self._clock() - self._entered
            self._entered = None

    @property
    def spent(self) -> float:
        """Own seconds up to now."""
        return self.own + (0.0 if self._entered is None else self._clock() - self._entered)

    @property
    def training(self) -> float:
        """Seconds of training up to now."""
        return 0.0 if self._began is None else max(0.0, self._clock() - self._began - self.spent)

    @property
    def share(self) -> float:
        """Own time over the training's, 0 before there was any."""
        training = self.training
        return self.own / training if training > 0.0 else 0.0

    def passes(self, before: int, now: int) -> bool:
        """Whether a multiple of ``every`` was passed between two steps."""
        return now // self.every > before // self.every

    def expect(self, point: float, checks: float) -> None:
        """What the first point is going to take, and its checks besides."""
        self._points, self._checks = [point], checks

    def note(self, point: float, checks: float) -> None:
        """What a point took; ``checks``: besides, 0 where there were none."""
        self._points = [*self._points, point][-REMEMBERED:] if self._noted else [point]
        self._checks, self._noted = checks or self._checks, True

    def affords(self, checked: bool) -> bool:
        """Whether the next point may be made now, with or without checks."""
        expected = max(self._points) + (self._checks if checked else 0.0)
        return self.has(SPARE * expected if self._noted else expected)

    @property
    def first_after(self) -> float:
        """Seconds of training after which there is time for the first point, as far as it was forecast."""
        return (self.own + self._points[0] + self._checks) / (self.overhead or float("inf"))

    def has_steps(self, number: float) -> bool:
        """Whether the time of so many steps of the training is within what is allowed."""
        return self.has(number * self.training / max(1, self._steps - 1))

    def has(self, seconds: float) -> bool:
        """Whether so many more seconds of own time are within what is allowed."""
        return self.overhead is None or self.spent + seconds <= self.overhead * self.training
