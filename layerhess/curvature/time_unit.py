"""What one plain gradient over the data takes: the unit in which the cost of an analysis is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.device import synchronise
from layerhess.curvature.gradient_sum import differentiate
from layerhess.objective.objective import Objective


class TimeUnit:
    """Times one gradient of the first batch, and carries it over to all data.

    Args:
        counters: get the result, :attr:`layerhess.curvature.counters.Counters.gradient_seconds`. open: whether it is
            wanted at all.

    Attributes:
        open: it is not known yet.
    """

    def __init__(self, counters: Counters, open: bool) -> None:
        self._counters = counters
        self._seconds, self._count = math.nan, 0.0
        self.open = open

    def measure(self, objective: Objective, batch: Any, parameters: Sequence[Tensor]) -> None:
        """Time one plain gradient of a batch (in session)."""
        clock = self._counters.clock
        synchronise(*objective.devices)
        start = clock()
        with self._counters.during("unit"):
            loss, self._count = objective.terms(batch)
            if loss.requires_grad:
                differentiate(loss, parameters, objective.parameters.values())
            synchronise(*objective.devices)
        self._seconds = clock() - start

    def settle(self, objective: Objective, count: float) -> None:
        """Carry it over to data of this count, which the ranks share; the first rank's time is taken that has one."""
        every = objective.group.gathered((self._seconds, self._count))
        seconds, own = next((one for one in every if one[1] > 0.0), (math.nan, 1.0))
        self._counters.gradient_seconds = seconds * count / own / len(every)
        self.open = not math.isfinite(seconds)
