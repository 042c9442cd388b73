"""The trace of the full model, from full products or as the sum of the blocks' traces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from layerhess.analysis.probing.block_samples import Member
from layerhess.analysis.probing.goals import Goals, cautious
from layerhess.linalg.estimates import TraceEstimate
from layerhess.linalg.stochastic.probe_statistics import Running
from layerhess.linalg.stochastic.rounding import entry_scales
from layerhess.linalg.stochastic.stopping import MINIMUM, excess_of, next_target, probes_needed
from layerhess.linalg.stochastic.trace import Trace

FULL_COST = 5.0  # of a full product, in products of one block; 3 to 6 on the networks of benchmarks/


@dataclass
class FullTrace:
    """What is known of the trace of all blocks together.

    Args:
        trace: how accurate it should be; None where it is not asked for. goals: of the blocks. members: all blocks.
    """

    trace: Trace | None
    goals: Goals
    members: Mapping[str, Member]
    _shared: Running[float] = field(default_factory=lambda: Running(0.0))

    def add(self, value: float) -> None:
        """Add one full product's sum of x_b'(A x)_b over the blocks that are not exact."""
        self._shared.add(value)

    def reset(self) -> None:
        """Drop the samples of full products, which were made with other projections."""
        self._shared = Running(0.0)

    @property
    def count(self) -> int:
        """Number of full products added."""
        return self._shared.count

    @property
    def excess(self) -> float:
        """Above 1 where more products are needed."""
        if self.trace is None or all(m.exact for m in self.members.values()):
            return 0.0
        value, error, count, nuclear = self._figures()
        if self.trace.probes is not None:
            return math.inf if count < self.trace.probes else 0.0
        if self.count >= self.trace.max_probes:
            return 0.0
        return cautious(count, excess_of(error, self.trace.tolerance(value, nuclear)))

    @property
    def missing(self) -> int:
        """How many more full products are needed, by the variance so far."""
        excess = self.excess
        if self.trace is None or excess <= 1.0:
            return 0
        if self.trace.probes is not None:
            return self.trace.probes - self.count
        return min(self.trace.max_probes, probes_needed(max(self.count, 1), excess)) - self.count

    @property
    def target(self) -> int:
        """The number of full products at which to check again."""
        excess = self.excess
        if self.trace is None or excess <= 1.0:
            return self.count
        if self.trace.probes is not None:
            return self.trace.probes
        return self.goals.enough if self.count < MINIMUM else next_target(self.count, excess, self.trace.max_probes)

    def own_products(self) -> dict[str, int]:
        """Blocks' own products that this trace needs, where they cost less than full products.

        First those without which there is no sum over the blocks, then those of the worst block.
        """
        active = self._active()
        left = {m.name: self.goals.enough - m.own.count for m in active if m.own.count < self.goals.enough}
        if not left and active:
            worst = max(active, key=lambda m: m.own.trace.standard_error)
            aim = next_target(worst.own.count, self.excess, self.goals.limit - worst.beside(worst.own))
            left = {worst.name: aim - worst.own.count}
        wanted = {name: number for name, number in left.items() if number > 0}
        return wanted if sum(wanted.values()) < FULL_COST * self.missing else {}

    def estimate(self) -> TraceEstimate:
        """The result so far."""
        options = self.trace or Trace()
        if all(m.exact for m in self.members.values()):
            status = "exact: the sum of the blocks' traces, which are all exact"
            return options.known(self._exact(), status, self._exact_scale())
        value, error, probes, nuclear = self._figures()
        deflated = any(m.deflation.size for m in self.members.values())
        method = "deflated" if deflated else "hutchinson"
        scale = nuclear + self._exact_scale()
        return options.estimate(value, error, probes=probes, method=method, nuclear=nuclear, scale=scale)

    def _active(self) -> list[Member]:
        return [m for m in self.members.values() if not m.exact]

    def _exact(self) -> float:
        return sum(float(m.known.diagonal.sum()) for m in self.members.values() if m.known.diagonal is not None)

    def _exact_scale(self) -> float:
        """Sum of the magnitudes of the summands in the exact traces."""
        known = [m.known for m in self.members.values()]
        return sum(float(entry_scales(k.diagonal, k.lengths).sum()) for k in known if k.diagonal is not None)

    def _figures(self) -> tuple[float, float, int, float]:
        """Value, standard error, probes and nuclear norm: from the full products, or from the blocks.

        Blocks' own probes are independent of each other, so their variances add; full products are one sample each.
        """
        active = self._active()
        nuclear = sum(m.best.trace.nuclear for m in active)
        if all(m.own.count >= self.goals.enough for m in active):
            error = math.sqrt(sum(m.own.trace.standard_error**2 for m in active))
            value = self._exact() + sum(m.own.trace.mean for m in active)
            return value, error, min((m.own.count for m in active), default=0), nuclear
        value = self._exact() + sum(m.deflation.trace for m in active) + self._shared.mean
        return value, self._shared.standard_error, self.count, nuclear
