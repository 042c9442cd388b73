"""Which layer gets which option, where the costs of layers add up: the cheapest plan within the limits, proven."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerhess.errors import CheckError, InputError
from layerhess.linalg.described import Described, Description
from layerhess.linalg.estimates import Floats
from layerhess.linalg.numbers import counted, number
from layerhess.planning.allocation.branching import branched
from layerhess.planning.allocation.nearest import no_plan
from layerhess.planning.allocation.problem import Choices, Problem

PROVEN = 1e-9  # of the sum of |costs|: an objective so near to its bound is optimal


@dataclass(frozen=True, repr=False)
class Allocation(Described):
    """An option for every layer.

    Attributes:
        choice: (L,) the index of each layer's option. objective: sum of its costs. bound: no plan within the limits
            costs less. gap: (objective - bound) over the larger of their sizes; 0 where optimal. optimal: proven, to
            rounding. uses: (J,) what the plan uses, in the order of the limits.
    """

    choice: Choices
    objective: float
    bound: float
    gap: float
    optimal: bool
    uses: Floats

    def _describe(self) -> Description:
        state = "proven optimal" if self.optimal else f"gap {number(100.0 * self.gap)} %"
        uses = ", ".join(number(float(use), 6) for use in self.uses)
        return Description(
            f"Allocation for {counted(len(self.choice), 'layer')}: objective {number(self.objective, 9)}, {state}",
            (f"uses {uses}",) if uses else (),
            "" if self.optimal else "NOT PROVEN OPTIMAL",
        )


def allocate(
    cost: Any,
    uses: Sequence[Any] = (),
    limits: Sequence[float] = (),
    tied: Iterable[Iterable[int]] = (),
    pinned: Mapping[int, int] | None = None,
    time_limit: float | None = None,
) -> Allocation:
    """The cheapest choice of one option for each layer: minimise sum_l cost[l, k_l] within the limits.

    The multiple-choice knapsack problem (Kellerer, Pferschy & Pisinger 2004, ch. 11) that HAWQ-V3 (Yao et al. 2021)
    poses for bits of layers. Exact, by the linear relaxation (HiGHS) and by counting out all plans near its bound; 200
    layers with 8 options under two limits take some 20 ms where costs are those of networks, seconds where the cost is
    nearly proportional to the uses. A plan that uses exactly a limit meets it: sums are known to 1e-9 of the limit.

    Args:
        cost: (L, K), any sign; inf: not allowed. uses: J tables (L, K) >= 0, such as bits, bytes, milliseconds; inf:
            not allowed. limits: J numbers. tied: groups of layers that take the same option. pinned: layer -> option.
        time_limit: seconds, looked at between steps that may take some; then the best plan so far, with its gap. None:
            until it is proven.

    Raises:
        InputError: tables or limits that cannot be used, see :class:`~.problem.Problem`; or no plan
            meets the limits (its ``details`` say what comes nearest).
        CheckError: no plan was found in that time.

    >>> allocate([[0.0, 3.0], [0.0, 1.0], [0.0, 2.0]], uses=[[[8, 4], [8, 4], [8, 4]]], limits=[16])
    Allocation for 3 layers: objective 3, proven optimal
      uses 16
    """
    return allocated(Problem(cost, uses, limits, tied, pinned or {}), time_limit)


def allocated(problem: Problem, time_limit: float | None = None) -> Allocation:
    """:func:`allocate` of a problem that is there already."""
    if time_limit is not None and not time_limit > 0.0:
        raise InputError(f"time_limit is {time_limit!r}", where="time_limit", what_to_do="use seconds > 0, or None")
    until = np.inf if time_limit is None else time.monotonic() + time_limit
    found = branched(problem, None, lambda: time.monotonic() >= until)
    if found.choice is None:
        if found.finished:
            raise no_plan(problem)
        raise CheckError(
            f"no plan within the limits was found in {time_limit:g} s",
            where="limits",
            what_to_do="give more time, or raise the limits",
        )
    objective = float(problem.objective(found.choice))
    size = float(np.abs(problem.cost[np.arange(len(problem.cost)), found.choice]).sum())
    optimal = found.finished or objective - found.bound <= PROVEN * size
    bound = objective if optimal else found.bound
    return Allocation(
        found.choice, objective, bound, relative_gap(objective, bound), optimal, problem.totals(found.choice)
    )


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) over the larger of their sizes, at least 0."""
    return max(objective - bound, 0.0) / max(abs(objective), abs(bound)) if objective > bound else 0.0
