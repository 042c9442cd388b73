"""Counts the work done in each phase (forward passes, products, seconds), and states its cost in gradients."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from layerhess.results.record import Cost, Counts

# Gradients that one exact product costs on a graph made for it alone: 0.9 to 1.3 for a block and 2.5 to 4.2 for the
# full model on the networks of benchmarks/.
BLOCK_ALONE, FULL_ALONE = 1.1, 3.2
KINDS = ("forwards", "backwards", "products")


class Counters:
    """Counts forwards, first backwards and Hessian-vector products of one batch each, by phase.

    Args:
        clock: returns seconds; all code that measures time uses this clock.

    Attributes:
        seconds: by phase. gradient_seconds: what one plain gradient over the data takes, timed on one batch. earlier:
            seconds of passes that an earlier run made, see :meth:`spend`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.phase = "solve"
        self.passes = 0
        self.full_products = 0
        self.earlier = 0.0
        self.seconds: dict[str, float] = defaultdict(float)
        self.gradient_seconds = math.nan
        self._inner: list[float] = []  # for each open phase, the time of the phases inside it
        self._by_phase: dict[str, dict[str, int]] = {}

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count and time the body under ``phase``; the time of phases inside it is not included."""
        before, start = self.phase, self.clock()
        self.phase = phase
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self.clock() - start
            self.seconds[phase] += spent - self._inner.pop()
            self.phase = before
            if self._inner:
                self._inner[-1] += spent

    def reading(self) -> dict[str, Any]:
        """What the counters show now, for :meth:`spent`."""
        inner = self._inner[-1] if self._inner else 0.0
        phases = {phase: dict(counts) for phase, counts in self._by_phase.items()}
        return {"clock": self.clock(), "inner": inner, "seconds": dict(self.seconds), "phases": phases}

    def spent(self, before: dict[str, Any]) -> dict[str, Any]:
        """What was counted since a :meth:`reading` in the same phase, as JSON types."""
        now = self.reading()
        seconds = {phase: value - before["seconds"].get(phase, 0.0) for phase, value in now["seconds"].items()}
        own = now["clock"] - before["clock"] - (now["inner"] - before["inner"])
        seconds[self.phase] = seconds.get(self.phase, 0.0) + own
        nothing = dict.fromkeys(KINDS, 0)
        phases = {
            phase: {kind: counts[kind] - before["phases"].get(phase, nothing)[kind] for kind in KINDS}
            for phase, counts in now["phases"].items()
        }
        return {"seconds": seconds, "phases": phases, "elapsed": now["clock"] - before["clock"]}

    def spend(self, spent: dict[str, Any]) -> None:
        """Count again what :meth:`spent` said of a pass that is not made again."""
        for phase, seconds in spent["seconds"].items():
            self.seconds[phase] += seconds
        for phase, counts in spent["phases"].items():
            own = self._by_phase.setdefault(phase, dict.fromkeys(KINDS, 0))
            for kind, number in counts.items():
                own[kind] += number
        self.earlier += spent["elapsed"]

    def count(self, kind: str, number: int = 1) -> None:
        """Add to "forwards", "backwards" or "products"."""
        phase = self._by_phase.setdefault(self.phase, dict.fromkeys(KINDS, 0))
        phase[kind] += number

    def cost(self, block_steps: int, full_steps: int) -> Cost | None:
        """What was spent, in gradients; None before one was timed.

        Args:
            block_steps, full_steps: products that solvers asked for, of blocks and of the full model.
        """
        if not self.gradient_seconds > 0.0:
            return None
        return Cost(
            gradient_seconds=self.gradient_seconds,
            gradients={phase: seconds / self.gradient_seconds for phase, seconds in self.seconds.items()},
            one_by_one=BLOCK_ALONE * block_steps + FULL_ALONE * full_steps,
        )

    def total(self, kind: str) -> int:
        """Sum over all phases."""
        return sum(phase[kind] for phase in self._by_phase.values())

    def counts(self) -> Counts:
        """An immutable copy for the result."""
        return Counts(
            passes=self.passes,
            forwards=self.total("forwards"),
            backwards=self.total("backwards"),
            products=self.total("products"),
            full_products=self.full_products,
            by_phase={name: dict(phase) for name, phase in self._by_phase.items()},
        )
