"""Lower bounds of the objective with interactions, each the exact minimum of an additive problem."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.allocation import allocated
from layerhess.planning.allocation.problem import Choices, Problem
from layerhess.planning.allocation.quadratic import Quadratic

MOST = 40  # tangents
CLOSE = 1e-4  # of the convex objective: what is left to gain is not worth more tangents


@dataclass(frozen=True, eq=False)
class Bound:
    """No plan within the limits has less than ``value``, the minimum of ``additive``, which is nowhere above."""

    value: float
    additive: Problem


def lower_bound(quadratic: Quadratic, *, time_limit: float | None = 5.0, tangents: int = MOST) -> Bound:
    """The better of two bounds.

    First, the additive underestimate (:meth:`~.quadratic.Quadratic.underestimate`). Second, tangents
    of the convex form f(x) = a'x + x'Mx / 2: for every plan s and any x, f(s) >= f(x) + f'(x)'(s - x), whose minimum
    over plans is an additive problem. Its solution is the direction in which x goes next (Frank & Wolfe 1956), so the
    bound rises to the minimum of f over mixtures of plans. That is close where the options of a layer err in like
    directions; a mixture of two options may cancel what either does alone, and then it is not.

    Args:
        quadratic: what to bound. time_limit: seconds, of each. tangents: at most so many.
    """
    additive = quadratic.underestimate()
    under = allocated(additive, time_limit)
    best = Bound(under.bound, additive)
    until = np.inf if time_limit is None else time.monotonic() + time_limit
    problem, allowed = quadratic.problem, quadratic.groups.allowed
    linear, matrix = quadratic.convex()
    place = np.full(allowed.shape, -1)
    place[allowed] = np.arange(len(linear))
    every = np.arange(len(allowed))

    def corner(plan: Choices) -> Floats:
        x = np.zeros(len(linear))
        x[place[every, problem.of_groups(plan)]] = 1.0
        return x

    x = corner(under.choice)
    for _ in range(tangents):
        slope = linear + matrix @ x
        value = float(linear @ x + x @ (slope - linear) / 2.0)
        cost = np.full(allowed.shape, np.inf)
        cost[allowed] = slope + (value - float(slope @ x)) / len(allowed)
        additive = quadratic.additive(cost)
        lowest = allocated(additive, time_limit)
        gain = value - lowest.bound
        best = max(best, Bound(lowest.bound, additive), key=lambda bound: bound.value)
        step = corner(lowest.choice) - x
        curved = float(step @ matrix @ step)
        if gain <= CLOSE * abs(value) or curved <= 0.0 or time.monotonic() >= until:
            break
        x = x + step * min(1.0, max(-float(slope @ step), 0.0) / curved)
    return best
