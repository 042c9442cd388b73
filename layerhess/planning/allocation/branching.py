"""Branch and bound for the additive problem: relax, count out, and divide where that is too much."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from layerhess.planning.allocation.descent import descended
from layerhess.planning.allocation.enumeration import enumerated
from layerhess.planning.allocation.problem import Choices, Flags, Problem
from layerhess.planning.allocation.relaxation import Relaxation, relaxed, rounded

PATIENCE = 12  # nodes
SMALL, GREAT = 0.1, 10.0  # efforts of counting out, see ``enumeration``: some 20 ms, two seconds
SAME = 1e-12  # of the sum of |costs|: what a bound is short of, by rounding


@dataclass(frozen=True, eq=False)
class Branched:
    """The best plan found, (L,), or None where there is none; no plan costs less than ``bound``."""

    choice: Choices | None
    bound: float
    finished: bool


def branched(problem: Problem, start: Choices | None, stop: Callable[[], bool]) -> Branched:
    """The cheapest plan within the limits.

    Each node is a set of options that each group may take. Its relaxation bounds it (Land & Doig 1960); what is so far
    above the bound that it cannot beat the best plan is left out; the rest is counted out where that is little. Else
    the node is divided over the options of the group that decides most about the uses: where a few layers are large,
    the fractions of these are what the relaxation gains by.

    Args:
        problem: what to minimise. start: (L,) a plan within the limits, if one is known. stop: asked at every node;
            when true, the best plan so far is returned with the bound so far.
    """
    groups = problem.groups
    best, value = start, np.inf if start is None else float(problem.objective(start))
    rounding = SAME * float(np.abs(np.where(groups.allowed, groups.cost, 0.0)).max(axis=1).sum())
    root = relaxed(groups)
    if root is None:
        return Branched(None, np.inf, finished=True)
    nodes: list[tuple[float, int, Flags, Relaxation]] = [(root.bound, 0, groups.allowed, root)]
    number = counts = 0
    while nodes:
        bound, _, allowed, relaxation = heapq.heappop(nodes)
        if bound >= value - rounding:
            break
        if counts and stop():
            return Branched(best, min(bound, value), finished=False)
        if counts == PATIENCE:  # dividing does not help where many layers are alike; counting the whole out may
            whole = enumerated(problem, _within(root, value), below=value, effort=GREAT)
            if whole.complete:
                return Branched(*((best, value) if whole.choice is None else (whole.choice, whole.bound)), True)
        counts += 1
        relaxation = _within(relaxation, value)
        allowed = allowed & np.isfinite(relaxation.excess)
        counted = enumerated(problem, relaxation, below=value, effort=SMALL)
        if counted.choice is not None and counted.bound < value:
            best, value = counted.choice, counted.bound
        if counted.complete:
            continue
        if counts & (counts - 1) == 0:  # the first, second, fourth, ... of those that were too much
            best, value = _improved(problem, relaxation, best, value)
            relaxation = _within(relaxation, value)
            allowed = allowed & np.isfinite(relaxation.excess)
        g = _divided(problem, relaxation, allowed)
        for k in np.flatnonzero(allowed[g]):
            number += 1
            part = allowed.copy()
            part[g] = np.arange(part.shape[1]) == k
            inner = relaxed(replace(groups, cost=np.where(part, groups.cost, np.inf), allowed=part))
            if inner is not None and inner.bound < value - rounding:
                heapq.heappush(nodes, (max(inner.bound, counted.bound), number, part, inner))
    return Branched(best, value, finished=True)


def _within(relaxation: Relaxation, value: float) -> Relaxation:
    """Without what no plan below ``value`` has."""
    return replace(
        relaxation, excess=np.where(relaxation.excess <= value - relaxation.bound, relaxation.excess, np.inf)
    )


def _improved(
    problem: Problem, relaxation: Relaxation, best: Choices | None, value: float
) -> tuple[Choices | None, float]:
    near = rounded(problem.groups, relaxation)
    if near is None:
        if best is None:
            return best, value
        near = problem.of_groups(best)
    plan = problem.of_layers(descended(problem.groups, near))
    found = float(problem.objective(plan))
    return (plan, found) if found < value and problem.feasible(plan) else (best, value)


def _divided(problem: Problem, relaxation: Relaxation, allowed: Flags) -> int:
    uses = problem.groups.uses
    paid = relaxation.prices > 0.0
    spread = np.where(allowed, uses, -np.inf).max(axis=2) - np.where(allowed, uses, np.inf).min(axis=2)
    weight = np.where(paid, relaxation.prices, 1.0 if not paid.any() else 0.0)
    decides = weight @ spread
    decides[allowed.sum(axis=1) < 2] = -np.inf
    return int(np.argmax(decides))
